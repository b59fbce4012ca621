# What users set, and what becomes of it.
{ lib, ... }:
let
  inherit (import ../fleet.nix { inherit lib; })
    host
    fleet
    sleep
    databases
    ;
  guardianFile = config: config.server.database.guardian.settings;
in
{
  "one line is enough" = {
    modules = host "app1" {
      server.database.dependentServices = [ "my-service" ];
      systemd.services.my-service = sleep;
    };
    expect = {
      links = [ "my-service.service.requires/io-databases.target" ];
      units."io-databases.target".has = [ "Upholds=my-service.service" ];
      config = config: [
        {
          name = "with no database declared, both are awaited";
          ok = lib.hasInfix ''"--postgres" "nixio:5432" "--redis" "nixio:6379"'' config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart;
        }
      ];
    };
  };

  "a host without databases is left alone" = {
    modules = host "web" { };
    expect = {
      units."io-guardian.service" = null;
      units."io-databases.target" = null;
      units."wait-for-io-databases.service" = null;
      firewall.extraCommands = "";
      secrets = { };
      values."sops.secrets" = { };
    };
  };

  "names with a suffix are taken as they are" = {
    modules = host "app1" {
      server.database.dependentServices = [
        "a.service"
        "worker@1"
        "c.timer"
        "d.socket"
      ];
      systemd.services = {
        a = sleep;
        "worker@" = sleep;
        c = sleep // {
          startAt = "daily";
        };
        d = sleep;
      };
      systemd.sockets.d.wantedBy = [ "sockets.target" ];
    };
    expect = {
      links = [
        "a.service.requires/io-databases.target"
        "worker@1.service.requires/io-databases.target"
        "c.timer.requires/io-databases.target"
        "c.service.requires/io-databases.target"
        "d.socket.requires/io-databases.target"
        "d.service.requires/io-databases.target"
      ];
      noLinks = [
        "sockets.target.wants/d.socket"
        "timers.target.wants/c.timer"
      ];
      units."io-databases.target".has = [
        "Upholds=a.service worker@1.service"
        "Wants=d.socket c.timer"
      ];
    };
  };

  "a service that has a socket is started by its socket" = {
    modules = host "app1" {
      server.database.postgres.myapp = { };
      systemd.services.myapp = sleep;
      systemd.sockets.myapp.wantedBy = [ "sockets.target" ];
    };
    expect = {
      links = [
        "myapp.service.requires/io-databases.target"
        "myapp.socket.requires/io-databases.target"
      ];
      units."io-databases.target" = {
        has = [ "Wants=myapp.socket" ];
        lacks = [ "Upholds=" ];
      };
    };
  };

  "what a socket starts for each connection depends, too" = {
    modules = host "app1" {
      server.database.dependentServices = [
        "talk.socket"
        "job@"
      ];
      systemd.services = {
        "talk@" = sleep;
        "job@" = sleep;
        "other@" = sleep;
      };
      systemd.sockets.talk = {
        wantedBy = [ "sockets.target" ];
        socketConfig.Accept = true;
      };
    };
    expect = {
      links = [
        "talk.socket.requires/io-databases.target"
        "talk@.service.requires/io-databases.target"
        "job@.service.requires/io-databases.target"
      ];
      noLinks = [ "other@.service.requires/io-databases.target" ];
      units."talk@.service".has = [ "After=io-databases.target" ];
      units."job@.service".has = [ "After=io-databases.target" ];
      units."io-databases.target" = {
        has = [
          "Before=talk.socket"
          "Wants=talk.socket"
        ];
        lacks = [
          "talk@"
          "job@"
        ];
      };
    };
  };

  "a oneshot is started once, and not again and again" = {
    modules = host "app1" {
      server.database.dependentServices = [ "migrate" ];
      systemd.services.migrate = {
        serviceConfig.Type = "oneshot";
        script = "true";
      };
    };
    expect.units."io-databases.target" = {
      has = [ "Wants=migrate.service" ];
      lacks = [ "Upholds=" ];
    };
  };

  "another port is the same everywhere" = {
    modules =
      (fleet {
        nixio = databases;
        app1 = {
          server.database.guardian.port = 9999;
          server.database.dependentServices = [ "x" ];
          systemd.services.x = sleep;
        };
      }).nixio;
    expect.values."environment.etc.io-guardian/hosts.text" = "app1:9999\n";
  };
  "another port is opened" = {
    modules = host "app1" {
      server.database.guardian.port = 9999;
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
    };
    expect = {
      firewall.extraCommands = "iptables -A nixos-fw -p tcp -s 192.168.1.0/24 --dport 9999 -j nixos-fw-accept\n";
      config = config: [
        {
          name = "and listened on";
          ok = (guardianFile config).port == 9999;
        }
      ];
    };
  };

  "nftables, IPv4 and IPv6" = {
    modules = host "app1" {
      networking.nftables.enable = true;
      server.network.subnets = [
        "10.0.0.0/8"
        "192.168.1.0/24"
        "fd00::/8"
      ];
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
    };
    expect.firewall = {
      extraCommands = "";
      extraInputRules = ''
        ip saddr { 10.0.0.0/8, 192.168.1.0/24 } tcp dport { 9876 } accept
        ip6 saddr { fd00::/8 } tcp dport { 9876 } accept
      '';
    };
  };

  "a firewall that we have no rules for is said" = {
    modules = host "app1" {
      networking.firewall.backend = "firewalld";
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
    };
    expect = {
      firewall.extraCommands = "";
      firewall.extraInputRules = "";
      warnings = [
        "networking.firewall.backend of app1 is firewalld, for which we have no rules: let 192.168.1.0/24 in on TCP port 9876 yourself, and set server.database.guardian.openFirewall = false;"
      ];
    };
  };

  "without IPv6 there is no ip6tables" = {
    modules = host "app1" {
      networking.enableIPv6 = false;
      server.network.subnets = [
        "10.0.0.0/8"
        "fd00::/8"
      ];
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
    };
    expect.firewall.extraCommands = "iptables -A nixos-fw -p tcp -s 10.0.0.0/8 --dport 9876 -j nixos-fw-accept\n";
  };

  "the firewall can be left alone" = {
    modules = host "app1" {
      server.database.guardian.openFirewall = false;
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
    };
    expect.firewall.extraCommands = "";
  };

  "a key file instead of sops" = {
    modules = host "app1" {
      server.database.pskFile = "/var/lib/secrets/psk";
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
    };
    expect = {
      units."io-guardian.service".has = [ "SupplementaryGroups=io-guardian-psk" ];
      values."sops.secrets" = { };
      values."users.groups.io-guardian-psk.gid" = null;
      values."environment.sessionVariables.GUARDIAN_WIRE" = "v2";
    };
  };

  "a key file, and passwords from sops all the same" = {
    modules = host "app1" {
      server.database.pskFile = "/var/lib/secrets/psk";
      server.database.redis.a.database_id = 0;
      systemd.services.a = sleep;
    };
    expect = {
      units."wait-for-io-databases.service".has = [ "LoadCredential=redis:/run/secrets/REDIS/PASSWORD" ];
      secrets."REDIS/PASSWORD".mode = "0400";
    };
  };
  "no secret from sops although it is there" = {
    modules = host "app1" {
      server.database.useSops = false;
      server.database.pskFile = "/var/lib/secrets/psk";
      server.database.redis.a.database_id = 0;
      systemd.services.a = sleep;
    };
    expect.values."sops.secrets" = { };
  };

  "without a coordinator, the guardian alone" = {
    modules =
      host "nixio" {
        server.database.coordinator.enable = false;
        server.database.dependentServices = [ "x" ];
        systemd.services.x = sleep;
      }
      ++ [ databases ];
    expect = {
      units."io-database-coordinator.service" = null;
      units."io-guardian.service".has = [ "Type=notify" ];
    };
  };

  "a primary with dependents of its own tells itself, too" = {
    modules =
      (fleet {
        nixio = {
          imports = [ databases ];
          server.database.postgres.local = { };
          systemd.services.local = sleep;
        };
      }).nixio;
    expect = {
      values."environment.etc.io-guardian/hosts.text" = "localhost:9876\n";
      units."io-database-coordinator.service".has = [
        "After=network-online.target nss-lookup.target postgresql.service redis.service postgresql.target io-guardian.service"
      ];
      units."wait-for-io-databases.service".lacks = [ "LoadCredential=" ];
    };
  };

  "two databases on one host are awaited once, elsewhere twice" = {
    modules = host "app1" {
      server.database.postgres = {
        a = { };
        b = { };
        c.host = "other.example.net";
      };
      systemd.services.a = sleep;
      systemd.services.b = sleep;
    };
    expect.config = config: [
      {
        name = "each server once";
        ok = lib.hasInfix ''"wait" "--postgres" "nixio:5432" "--postgres" "other.example.net:5432" "--attempts"'' config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart;
        seen = config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart;
      }
    ];
  };

  "an IPv6 address has its brackets" = {
    modules = host "app1" {
      server.database.host = "fd00::5";
      server.database.postgres.a = { };
      systemd.services.a = sleep;
    };
    expect.config = config: [
      {
        name = "brackets";
        ok = lib.hasInfix ''"--postgres" "[fd00::5]:5432"'' config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart;
      }
    ];
  };

  "the wait logs in where it is told to" = {
    modules = host "app1" {
      server.database.postgres.a = { };
      server.database.wait.postgres = {
        user = "a";
        database = "a";
        passwordFile = "/run/secrets/A";
        requirePrimary = true;
      };
      server.database.wait.attempts = 60;
      systemd.services.a = sleep;
    };
    expect = {
      units."wait-for-io-databases.service".has = [ "LoadCredential=postgres:/run/secrets/A" ];
      config = config: [
        {
          name = "flags";
          ok = lib.hasInfix ''"--user" "a" "--database" "a" "--require-primary" "--attempts" "60"'' config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart;
          seen = config.systemd.services.wait-for-io-databases.serviceConfig.ExecStart;
        }
      ];
    };
  };

  "Redis numbers come from the fleet's file" = {
    modules = host "app1" {
      server.database.redisDatabaseIds.queue = 7;
      server.database.redis.queue = { };
      systemd.services.queue = sleep;
    };
    expect.values."server.database.redis.queue.database_id" = 7;
  };

  "a guardian has figures where it is told to, for the fleet's networks only" = {
    modules = host "app1" {
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
      server.database.guardian.metrics = {
        enable = true;
        address = "::";
        port = 9999;
        openFirewall = true;
      };
    };
    expect.config = config: [
      {
        name = "an IPv6 address has brackets";
        ok = (guardianFile config).metrics == "[::]:9999";
        seen = guardianFile config;
      }
      {
        name = "the port is open";
        ok = lib.hasInfix "--dport 9999 -j" config.networking.firewall.extraCommands;
        seen = config.networking.firewall.extraCommands;
      }
    ];
  };

  "without a wish nobody has figures, and nobody shows the fleet" = {
    modules =
      (fleet {
        nixio = databases;
        app1 = {
          server.database.dependentServices = [ "x" ];
          systemd.services.x = sleep;
        };
      }).nixio;
    expect.units = {
      "io-coordinator-serve.service" = null;
    };
  };
}
