# The example hosts: what the tables of the documentation promise of each.
{ lib, ... }:
let
  inherit (import ../fleet.nix { inherit lib; }) examples;
in
{
  "app1: its service is tied to the databases by its name" = {
    modules = examples.app1;
    expect = {
      units."io-databases.target".has = [
        "Requires=wait-for-io-databases.service"
        "After=wait-for-io-databases.service"
        "Before=myapp.service"
        "Upholds=myapp.service"
        # A switch starts what multi-user.target wants, and every target.
        "X-OnlyManualStart=true"
      ];
      # Requires=: it starts only with the target, stops with it and restarts with it.
      links = [
        "myapp.service.requires/io-databases.target"
        "multi-user.target.wants/io-databases-boot.service"
        "multi-user.target.wants/io-guardian.service"
      ];
      units."myapp.service" = {
        # Stopped for a switch, it would be upheld by its old file.
        has = [ "X-StopIfChanged=false" ];
        lacks = [ "WantedBy=" ];
      };
      # Nobody starts it behind the guardian's back, and no switch starts the target.
      noLinks = [
        "multi-user.target.wants/myapp.service"
        "multi-user.target.wants/io-databases.target"
      ];
      units."wait-for-io-databases.service" = {
        has = [
          "Type=oneshot"
          "NotifyAccess=main"
          "X-RestartIfChanged=false"
          "TimeoutStartSec=90s"
          "DynamicUser=true"
          "After=network-online.target"
          "LoadCredential=redis:/run/secrets/REDIS/PASSWORD"
        ];
        # A wait that stays active would hold for one boot only.
        lacks = [ "RemainAfterExit=true" ];
      };
      units."io-guardian.service" = {
        has = [
          "Type=notify"
          "User=io-guardian"
          "SupplementaryGroups=io-guardian-psk"
          "Restart=always"
          "WatchdogSec=10s"
          "StateDirectory=io-guardian"
          "NoNewPrivileges=true"
          "RestartPreventExitStatus=64 78"
          "CapabilityBoundingSet="
        ];
        # A credential would be that of the unit's start: a new key would need a new guardian.
        lacks = [ "LoadCredential=psk:/run/secrets/IO_GUARDIAN_PSK" ];
      };
      units."io-database-coordinator.service" = null;
      secrets.IO_GUARDIAN_PSK = {
        mode = "0440";
        group = "io-guardian-psk";
        restartUnits = [ ];
        reloadUnits = [ "io-guardian.service" ];
      };
      secrets."POSTGRES/MYAPP_PASSWORD".owner = "myapp";
      firewall.extraCommands = ''
        iptables -A nixos-fw -p tcp -s 192.168.1.0/24 --dport 9876 -j nixos-fw-accept
        iptables -A nixos-fw -p tcp -s 192.168.1.0/24 --dport 9878 -j nixos-fw-accept
        ip6tables -A nixos-fw -p tcp -s fd00::/8 --dport 9876 -j nixos-fw-accept
        ip6tables -A nixos-fw -p tcp -s fd00::/8 --dport 9878 -j nixos-fw-accept
      '';
      firewall.allowedTCPPorts = [ ];
      config = config: [
        {
          name = "the wait asks both databases of the primary, and does not give up";
          ok =
            lib.all
              (part: lib.hasInfix part config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart)
              [
                ''"--postgres" "nixio:5432"''
                ''"--redis" "nixio:6379"''
                ''"--attempts" "unlimited"''
              ];
          seen = config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart;
        }
        {
          name = "the key is neither in argv nor in the environment";
          ok =
            lib.hasInfix "\"--psk-file\" \"/run/secrets/IO_GUARDIAN_PSK\"" config.systemd.services.io-guardian.serviceConfig.ExecStart
            && !(config.systemd.services.io-guardian.environment ? GUARDIAN_PSK_FILE);
        }
        {
          name = "the guardian watches what the wait waits for, and logs in as it does";
          ok =
            lib.hasSuffix ''"--postgres" "nixio:5432" "--redis" "nixio:6379" --redis-password-file %d/redis'' config.systemd.services.io-guardian.serviceConfig.ExecStart
            &&
              config.systemd.services.io-guardian.serviceConfig.LoadCredential
              == [ "redis:/run/secrets/REDIS/PASSWORD" ];
          seen = config.systemd.services.io-guardian.serviceConfig.ExecStart;
        }
        {
          name = "a boot does not start what somebody holds down";
          ok =
            lib.hasInfix "if [ ! -e /var/lib/io-guardian/hold.json ]" config.systemd.services.io-databases-boot.script
            && !(config.systemd.services.io-databases-boot.unitConfig ? ConditionPathExists);
        }
        {
          name = "polkit lets the guardian manage one unit";
          ok = lib.hasInfix ''action.lookup("unit") == "io-databases.target"'' config.security.polkit.extraConfig;
        }
      ];
    };
  };

  "app2: a service of a database, one by hand, a timer and what it starts" = {
    modules = examples.app2;
    expect = {
      units."io-databases.target".has = [
        "Before=queue.service report.service worker.service report.timer"
        "Upholds=queue.service worker.service"
        "Wants=report.timer"
      ];
      links = [
        "queue.service.requires/io-databases.target"
        "worker.service.requires/io-databases.target"
        "report.timer.requires/io-databases.target"
        "report.service.requires/io-databases.target"
      ];
      noLinks = [
        "timers.target.wants/report.timer"
        "multi-user.target.wants/worker.service"
      ];
      units."report.timer.service" = null;
    };
  };

  "nixio: the coordinator is bound to the databases and ordered after all that a drain needs" = {
    modules = examples.nixio;
    expect = {
      units."io-database-coordinator.service" = {
        has = [
          "Type=oneshot"
          "RemainAfterExit=true"
          "BindsTo=postgresql.service redis.service"
          "After=network-online.target nss-lookup.target postgresql.service redis.service postgresql.target"
          "Wants=network-online.target"
          "ProtectSystem=strict"
          "TimeoutStopSec=105s"
          "KillMode=process"
          "OOMPolicy=continue"
          "User=io-coordinator"
          # A deployment does not drain a fleet.
          "X-RestartIfChanged=false"
          "RestartPreventExitStatus=64 78"
        ];
        lacks = [
          # systemd leaves ExecStop= out when the start is not over.
          "ExecStop="
          # A credential would be that of the unit's start.
          "LoadCredential=psk:/run/secrets/IO_GUARDIAN_PSK"
        ];
      };
      # It comes with each start of a database.
      links = [
        "postgresql.service.wants/io-database-coordinator.service"
        "redis.service.wants/io-database-coordinator.service"
      ];
      # Neither a boot nor a switch waits for it.
      noLinks = [ "multi-user.target.wants/io-database-coordinator.service" ];
      units."io-databases-provision.service".has = [
        "Before=io-database-coordinator.service"
        "LoadCredential=myapp:/run/secrets/POSTGRES/MYAPP_PASSWORD"
      ];
      units."io-guardian.service" = null;
      units."io-databases.target" = null;
      values."environment.etc.io-guardian/hosts.text" = "app1:9876\napp2:9876\n";
      values."services.postgresql.ensureDatabases" = [ "myapp" ];
      values."services.postgresql.ensureUsers" = [ { name = "myapp"; } ];
      values."server.database.host" = "localhost";
      secrets.IO_GUARDIAN_PSK = {
        restartUnits = [ ];
        reloadUnits = [ ];
        group = "io-guardian-psk";
        mode = "0440";
      };
      config = config: [
        {
          name = "only what answers is announced";
          ok =
            lib.all
              (
                part:
                lib.hasInfix part (
                  toString config.systemd.services.io-database-coordinator.serviceConfig.ExecStartPre
                )
              )
              [
                ''"--postgres" "localhost:5432"''
                ''"--redis" "localhost:6379"''
                " --redis-password-file %d/redis"
              ];
        }
        {
          name = "Redis is there for other hosts, with its password, and is restarted with it";
          ok =
            config.services.redis.servers."".bind == null
            && config.services.redis.servers."".requirePassFile == "/run/secrets/REDIS/PASSWORD"
            && config.sops.secrets."REDIS/PASSWORD".restartUnits == [ "redis.service" ];
        }
        {
          name = "the role gets its password and its database, and no log gets either";
          ok = lib.all (part: lib.hasInfix part config.systemd.services.io-databases-provision.script) [
            "ALTER ROLE :\"role\" LOGIN PASSWORD :'password';"
            "ALTER DATABASE :\"database\" OWNER TO :\"role\";"
            "SET log_statement = 'none';"
          ];
        }
        {
          name = "undrain on start, drain on stop";
          ok =
            lib.hasInfix ''"undrain"'' config.systemd.services.io-database-coordinator.serviceConfig.ExecStart
            && lib.hasInfix ''"drain"'' config.systemd.services.io-database-coordinator.serviceConfig.ExecStopPost;
        }
        {
          name = "a drain that is killed is not the last one";
          ok = lib.hasInfix "\"--supervised\"" config.systemd.services.io-database-coordinator.serviceConfig.ExecStopPost;
        }
      ];
    };
  };
}
