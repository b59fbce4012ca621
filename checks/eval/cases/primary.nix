# What is made of the fleet on its primary.
{ lib, ... }:
let
  inherit (import ../fleet.nix { inherit lib; })
    host
    fleet
    sleep
    databases
    ;
in
{
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

  "without sops a role owns its database all the same, and its password is not ours" = {
    modules =
      (fleet {
        nixio = {
          imports = [ databases ];
          server.database.useSops = false;
          server.database.pskFile = "/var/lib/secrets/psk";
          server.database.redisPasswordSecret = "REDIS/PASSWORD";
        };
        app1 = {
          server.database.postgres.a = { };
          systemd.services.a = sleep;
        };
      }).nixio;
    expect = {
      units."io-databases-provision.service".lacks = [ "LoadCredential=" ];
      values."sops.secrets" = { };
      config = config: [
        {
          name = "the owner, and no password";
          ok =
            lib.hasInfix "OWNER TO" config.systemd.services.io-databases-provision.script
            && !(lib.hasInfix "PASSWORD" config.systemd.services.io-databases-provision.script);
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

  "hosts of different tiers are undrained in waves, and drained whatever fails" =
    let
      app = tier: {
        server.database.tier = tier;
        server.database.dependentServices = [ "x" ];
        server.database.guardian.watch.undrainAfter = null;
        systemd.services.x = sleep;
      };
    in
    {
      modules =
        (fleet {
          nixio = {
            imports = [ databases ];
            server.database.coordinator = {
              stopTimeout = "200s";
              waves = {
                size = 5;
                jitter = "10s";
              };
            };
          };
          app1 = app 0;
          app2 = app null;
        }).nixio;
      expect = {
        config = config: [
          {
            name = "each host has its tier";
            ok = config.environment.etc."io-guardian/hosts".text == "app1:9876 tier=0\napp2:9876\n";
            seen = config.environment.etc."io-guardian/hosts".text;
          }
          {
            name = "the undrain has waves";
            ok = lib.hasInfix ''"--settle" "5s" "--wave-size" "5" "--jitter" "10s" "--go-on"'' config.systemd.services.io-database-coordinator.serviceConfig.ExecStart;
            seen = config.systemd.services.io-database-coordinator.serviceConfig.ExecStart;
          }
          {
            name = "the drain goes on";
            ok = lib.hasInfix ''"--go-on" "--supervised"'' config.systemd.services.io-database-coordinator.serviceConfig.ExecStopPost;
            seen = config.systemd.services.io-database-coordinator.serviceConfig.ExecStopPost;
          }
        ];
        warnings = [ ];
      };
    };

  "tiers need more time to stop, and guardians that do not undrain themselves first" = {
    modules =
      (fleet {
        nixio = databases;
        app1 = {
          server.database.tier = 0;
          server.database.dependentServices = [ "x" ];
          systemd.services.x = sleep;
        };
        app2 = {
          server.database.dependentServices = [ "x" ];
          systemd.services.x = sleep;
        };
      }).nixio;
    expect = {
      assertions = [
        "A drain must be over before systemd ends it: server.database.coordinator.timeout (60s) and drainRetryFor (15s), for each of 2 tiers, and 27 s for the generation and a second look, together must be shorter than stopTimeout (105s)."
      ];
      warnings = [
        "The fleet is undrained in waves, and app1, app2 undrain themselves before it is their turn: set server.database.guardian.watch.undrainAfter there to longer than the waves take (\"10m\"), or to null."
      ];
    };
  };

  "the fleet is shown, and takes commands from who shows the token" = {
    modules =
      (fleet {
        nixio = {
          imports = [ databases ];
          server.database.coordinator = {
            timeout = "61s";
            serve = {
              enable = true;
              tokenFile = "/run/secrets/TOKEN";
            };
          };
        };
        app1 = {
          server.database.dependentServices = [ "x" ];
          systemd.services.x = sleep;
        };
      }).nixio;
    expect = {
      units."io-coordinator-serve.service".has = [
        "LoadCredential=token:/run/secrets/TOKEN"
        "StateDirectory=io-coordinator"
      ];
      config = config: [
        {
          name = "its commands have the time that the coordinator's have";
          ok = lib.hasInfix ''"--timeout" "61s" "--connect-timeout" "5s"'' config.systemd.services.io-coordinator-serve.serviceConfig.ExecStart;
          seen = config.systemd.services.io-coordinator-serve.serviceConfig.ExecStart;
        }
      ];
    };
  };
}
