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
        "worker@1" = sleep;
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
      units."io-guardian.service".has = [ "LoadCredential=psk:/var/lib/secrets/psk" ];
      values."sops.secrets" = { };
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

  "of several Redis servers those that the fleet uses are followed, and the first is asked" = {
    modules =
      (fleet {
        nixio = {
          imports = [ databases ];
          services.redis.servers = {
            queue = {
              enable = true;
              port = 6380;
            };
            # Somebody else's.
            cache = {
              enable = true;
              port = 6381;
            };
            local = {
              enable = true;
              port = 0;
            };
          };
        };
        app1 = {
          server.database.redis.x = {
            database_id = 0;
            port = 6380;
          };
          systemd.services.x = sleep;
        };
      }).nixio;
    expect = {
      units."io-database-coordinator.service".has = [
        "BindsTo=postgresql.service redis.service redis-queue.service"
      ];
      config = config: [
        {
          name = "a password is given to the server that has it";
          ok = lib.hasInfix ''"--postgres" "localhost:5432" "--redis" "localhost:6379" "--attempts"'' (
            toString config.systemd.services.io-database-coordinator.serviceConfig.ExecStartPre
          );
          seen = config.systemd.services.io-database-coordinator.serviceConfig.ExecStartPre;
        }
      ];
    };
  };

  "databases that listen on one address are asked there" = {
    modules =
      (fleet {
        nixio = {
          imports = [ databases ];
          services.postgresql.settings.listen_addresses = lib.mkForce "10.0.0.1, 10.0.0.2";
          services.redis.servers."".bind = "fd00::1 10.0.0.1";
        };
        app1 = {
          server.database.dependentServices = [ "x" ];
          systemd.services.x = sleep;
        };
      }).nixio;
    expect.config = config: [
      {
        name = "their first";
        ok = lib.hasInfix ''"--postgres" "10.0.0.1:5432" "--redis" "[fd00::1]:6379"'' (
          toString config.systemd.services.io-database-coordinator.serviceConfig.ExecStartPre
        );
        seen = config.systemd.services.io-database-coordinator.serviceConfig.ExecStartPre;
      }
    ];
  };

  "what lies on another server is not made on the primary" = {
    modules =
      (fleet {
        nixio = databases;
        app1 = {
          server.database.postgres.archive = {
            host = "db2.example.net";
            user = "reader";
          };
          server.database.redis.far = {
            host = "db2.example.net";
            database_id = 0;
          };
          systemd.services.archive = sleep;
        };
      }).nixio;
    expect = {
      values."services.postgresql.ensureDatabases" = [ ];
      values."services.postgresql.authentication" = "";
      units."io-databases-provision.service" = null;
      config = config: [
        {
          name = "nor its password";
          ok = !(config.sops.secrets ? "POSTGRES/ARCHIVE_PASSWORD");
        }
      ];
    };
  };

  "a single address is a network of one" = {
    modules =
      (fleet {
        nixio = {
          imports = [ databases ];
          server.network.subnets = [
            "10.0.0.5"
            "fd00::5"
          ];
        };
        app1 = {
          server.database.postgres.a = { };
          systemd.services.a = sleep;
        };
      }).nixio;
    expect.values."services.postgresql.authentication" = ''
      host "a" "a" 10.0.0.5/32 scram-sha-256
      host "a" "a" fd00::5/128 scram-sha-256
    '';
  };

  "one part alone, and both together" =
    let
      part = name: { server.database.parts = [ name ]; };
      x = {
        server.database.dependentServices = [ "x" ];
        systemd.services.x = sleep;
        server.database.coordinator.hosts = [ "app1" ];
      };
      both = host "nixio" {
        imports = [
          x
          databases
          (part "guardian")
          (part "coordinator")
        ];
      };
    in
    {
      modules = both;
      expect = {
        units."io-guardian.service".has = [ "Type=notify" ];
        units."io-database-coordinator.service".has = [ "Type=oneshot" ];
      };
    };
  "the guardian's part has no coordinator" = {
    modules = host "nixio" {
      imports = [ databases ];
      server.database.parts = [ "guardian" ];
      server.database.dependentServices = [ "x" ];
      systemd.services.x = sleep;
    };
    expect = {
      units."io-guardian.service".has = [ "Type=notify" ];
      units."io-database-coordinator.service" = null;
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

  "PostgreSQL lets the fleet's networks in, by password" = {
    modules =
      (fleet {
        nixio = databases;
        app1 = {
          server.database.postgres.my-app.database = "my_app";
          systemd.services.my-app = sleep;
        };
      }).nixio;
    expect = {
      values."services.postgresql.authentication" = ''
        host "my_app" "my-app" 192.168.1.0/24 scram-sha-256
      '';
      values."services.postgresql.enableTCPIP" = true;
      values."services.postgresql.ensureDatabases" = [ "my_app" ];
      secrets."POSTGRES/MY_APP_PASSWORD".restartUnits = [ "io-databases-provision.service" ];
    };
  };
}
