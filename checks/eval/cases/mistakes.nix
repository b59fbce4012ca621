# Each mistake has its exact message: the rule, the values, the line to change.
{ lib, ... }:
let
  inherit (import ../fleet.nix { inherit lib; })
    host
    fleet
    sleep
    databases
    ;
  x = {
    server.database.dependentServices = [ "x" ];
    systemd.services.x = sleep;
  };
  wrong = settings: error: {
    modules = host "app1" settings;
    expect = { inherit error; };
  };
  fails = settings: assertions: {
    modules = host "app1" settings;
    expect = { inherit assertions; };
  };
  onPrimary = settings: assertions: {
    modules =
      (fleet (
        {
          nixio = databases;
          app1 = x;
        }
        // settings
      )).nixio;
    expect = { inherit assertions; };
  };
in
{
  "no primary" =
    fails
      {
        imports = [ x ];
        server.ioPrimaryHost = null;
        server.database.host = "db";
      }
      [
        "server.ioPrimaryHost is not set, and app1 uses databases: name the host that runs them, for example server.ioPrimaryHost = \"nixio\";"
      ];

  "a key in the store" = wrong {
    imports = [ x ];
    server.database.pskFile = "${builtins.storeDir}/00000000000000000000000000000000-psk";
  } "absolute path, as text, outside of the Nix store (which everyone can read)";
  "a key that would be copied to the store" = wrong {
    imports = [ x ];
    server.database.pskFile = ../../../hosts/server/test-age-key.txt;
  } "absolute path, as text, outside of the Nix store (which everyone can read)";
  "a subnet that is none" = wrong {
    imports = [ x ];
    server.network.subnets = [ "192.168.1" ];
  } "IPv4 or IPv6 network, like `192.168.1.0/24` or `fd00::/8`";
  "a time without a unit" = wrong {
    imports = [ x ];
    server.database.wait.interval = "5";
  } "duration with a unit, like `5s`, `2m` or `1m 30s`";
  "a port that is none" = wrong {
    imports = [ x ];
    server.database.guardian.port = 70000;
  } "server.database.guardian.port";
  "an option that does not exist" = wrong {
    imports = [ x ];
    server.database.dependentService = [ "x" ];
  } "server.database.dependentService' does not exist";
  "a Redis number that Redis does not have" = wrong {
    imports = [ x ];
    server.database.redis.x.database_id = 16;
  } "database_id";

  "a coordinator on another host" =
    fails
      {
        imports = [
          x
          databases
        ];
        server.database.coordinator = {
          enable = true;
          hosts = [ "app2" ];
        };
      }
      [
        "server.database.coordinator.enable is set on app1, but server.ioPrimaryHost is nixio: the coordinator belongs on the host whose databases it watches."
      ];
  "a coordinator with no database" = {
    modules = host "nixio" {
      server.database.coordinator.enable = true;
      server.database.coordinator.hosts = [ "app1" ];
    };
    expect.assertions = [
      "The coordinator on nixio has no database to follow: enable services.postgresql or services.redis.servers, or name their units with server.database.coordinator.units."
    ];
  };
  "a coordinator with nobody to tell" = {
    modules = host "nixio" {
      imports = [ databases ];
      server.database.coordinator.enable = true;
    };
    expect.assertions = [
      "The coordinator on nixio has nobody to tell: set server.database.coordinator.fleet = self.nixosConfigurations; or server.database.coordinator.hosts."
    ];
  };
  "a guardian that answers too late" =
    onPrimary
      {
        nixio = {
          imports = [
            databases
            x
          ];
          server.database.guardian.commandTimeout = "60s";
        };
      }
      [
        "A guardian must answer before the coordinator stops listening: server.database.guardian.commandTimeout (60s) must be shorter than server.database.coordinator.timeout (60s)."
      ];
  "a guardian of another host that answers too late" =
    onPrimary
      {
        app1 = {
          imports = [ x ];
          server.database.guardian.commandTimeout = "2m";
        };
      }
      [
        "A guardian must answer before the coordinator stops listening: server.database.guardian.commandTimeout (2m) of app1 must be shorter than server.database.coordinator.timeout (60s) of nixio."
      ];
  "a drain that systemd would cut off" =
    onPrimary
      {
        nixio = {
          imports = [ databases ];
          server.database.coordinator.drainRetryFor = "30s";
        };
      }
      [
        "A drain must be over before systemd ends it: server.database.coordinator.timeout (60s) and drainRetryFor (30s), and 27 s for the generation and a second look, together must be shorter than stopTimeout (105s)."
      ];
  "a dependent that stops too slowly" =
    fails
      {
        imports = [ x ];
        systemd.services.x.serviceConfig.TimeoutStopSec = "1m 30s";
      }
      [
        "A dependent must stop before its drain is given up: TimeoutStopSec of x.service must be shorter than server.database.guardian.commandTimeout (45s)."
      ];
  "a standby that cannot be told" =
    fails
      {
        imports = [ x ];
        server.database.wait.postgres.requirePrimary = true;
      }
      [
        "server.database.wait.postgres.requirePrimary needs server.database.wait.postgres.user: only a query tells a primary from a standby."
      ];
  "a password of nobody" =
    fails
      {
        imports = [ x ];
        server.database.wait.postgres.passwordFile = "/run/secrets/p";
      }
      [
        "server.database.wait.postgres.passwordFile needs server.database.wait.postgres.user: whose password is it?"
      ];
  "nothing to wait for" =
    fails
      {
        imports = [ x ];
        server.database.wait.postgres.enable = false;
        server.database.wait.redis.enable = false;
      }
      [
        "app1 has dependents and nothing to wait for: enable server.database.wait.postgres or server.database.wait.redis."
      ];
  "no PostgreSQL for what is declared" =
    onPrimary
      {
        nixio.services.redis.servers."".enable = true;
        app1 = {
          server.database.postgres.a = { };
          systemd.services.a = sleep;
        };
      }
      [
        "PostgreSQL databases are declared (a by app1), and nixio, their primary, has no PostgreSQL: set services.postgresql.enable = true; or server.database.provision.enable = false;"
        "app1 waits for PostgreSQL, and nixio, its primary, has none: its services would never start. Set services.postgresql.enable = true; here, or server.database.wait.postgres.enable = false; on app1."
      ];
  "no Redis for what is declared" =
    onPrimary
      {
        nixio.services.postgresql.enable = true;
        app1 = {
          server.database.redis.a.database_id = 0;
          systemd.services.a = sleep;
        };
      }
      [
        "Redis databases are declared (a by app1), and nixio, their primary, has no Redis: set services.redis.servers.\"\".enable = true; or server.database.provision.enable = false;"
        "app1 waits for Redis, and nixio, its primary, has none: its services would never start. Set services.redis.servers.\"\".enable = true; here, or server.database.wait.redis.enable = false; on app1."
      ];
  "a host that waits for a Redis that is not there" =
    onPrimary { nixio.services.postgresql.enable = true; }
      [
        "app1 waits for Redis, and nixio, its primary, has none: its services would never start. Set services.redis.servers.\"\".enable = true; here, or server.database.wait.redis.enable = false; on app1."
      ];
  "a host that waits for a PostgreSQL that is not there" =
    onPrimary { nixio.services.redis.servers."".enable = true; }
      [
        "app1 waits for PostgreSQL, and nixio, its primary, has none: its services would never start. Set services.postgresql.enable = true; here, or server.database.wait.postgres.enable = false; on app1."
      ];
  "a host that waits for a Redis whose password it does not have" =
    onPrimary
      {
        app2 = {
          server.database.redis.y.database_id = 0;
          systemd.services.y = sleep;
        };
      }
      [
        "app1 waits for Redis without a password, and Redis on nixio has one: its services would never start. On app1, set server.database.wait.redis.passwordFile, or server.database.wait.redis.enable = false;"
      ];
  "a name that SQL would have to quote" = {
    modules = host "nixio" {
      imports = [ databases ];
      server.database.postgres.a.user = "a b";
    };
    expect.error = "server.database.postgres.a.user";
  };
  "a role with two passwords" =
    onPrimary
      {
        app1 = {
          server.database.postgres.a.user = "u";
          systemd.services.a = sleep;
        };
        app2 = {
          server.database.postgres.b.user = "u";
          systemd.services.b = sleep;
        };
      }
      [
        "server.database.postgres.a on app1 and b on app2 share the role u and have two passwords for it (POSTGRES/A_PASSWORD, POSTGRES/B_PASSWORD): give both one password.secret, or roles of their own."
      ];
  "a database with two owners" =
    onPrimary
      {
        app1 = {
          server.database.postgres.a.database = "d";
          systemd.services.a = sleep;
        };
        app2 = {
          server.database.postgres.b.database = "d";
          systemd.services.b = sleep;
        };
      }
      [
        "server.database.postgres.a on app1 and b on app2 share the database d, and it has one owner: give both one user (a or b)."
      ];
  "a PostgreSQL on another port than is asked" =
    onPrimary
      {
        nixio = {
          imports = [ databases ];
          services.postgresql.settings.port = 5433;
        };
      }
      [
        "app1 asks for PostgreSQL on port 5432, and nixio's listens on 5433: set server.database.postgres.<name>.port on app1."
      ];
  "a Redis on another port than is asked" =
    onPrimary
      {
        nixio = {
          imports = [ databases ];
          services.redis.servers."".port = 6380;
        };
      }
      [
        "app1 asks for Redis on port 6379, and nixio's listens on 6380: set server.database.redis.<name>.port on app1."
      ];
  "an address that is none" = wrong {
    imports = [ x ];
    server.network.subnets = [ "999.1.1.1/24" ];
  } "IPv4 or IPv6 network";
  "a length that is none" = wrong {
    imports = [ x ];
    server.network.subnets = [ "10.0.0.0/99" ];
  } "IPv4 or IPv6 network";
  "a primary that is no host" = {
    modules = host "app1" {
      imports = [ x ];
      server.ioPrimaryHost = "nixio.example.net";
      server.database.coordinator.fleet.nixio.config.networking.hostName = "nixio";
    };
    expect.warnings = [
      "server.ioPrimaryHost is nixio.example.net, and no host of server.database.coordinator.fleet has that networking.hostName (it has nixio): nobody is told when the databases come and go."
    ];
  };
  "one name, two databases" =
    onPrimary
      {
        app1 = {
          server.database.postgres.a = { };
          systemd.services.a = sleep;
        };
        app2 = {
          server.database.postgres.a.database = "b";
          systemd.services.a = sleep;
        };
      }
      [
        "server.database.postgres.a means different things on app1 (database a, user a) and app2 (database b, user a): rename one of them."
      ];
  "one Redis number, two names" =
    onPrimary
      {
        app1 = {
          server.database.redis.a.database_id = 0;
          systemd.services.a = sleep;
        };
        app2 = {
          server.database.redis.b.database_id = 0;
          systemd.services.b = sleep;
        };
      }
      [
        "Redis database 0 belongs to a on app1 and to b on app2: give one of them another number (1 is free)."
      ];
  "one Redis name, two numbers" =
    onPrimary
      {
        app1 = {
          server.database.redis.a.database_id = 0;
          systemd.services.a = sleep;
        };
        app2 = {
          server.database.redis.a.database_id = 1;
          systemd.services.a = sleep;
        };
      }
      [
        "server.database.redis.a has number 0 on app1 and 1 on app2: give it one, in server.database.redisDatabaseIds."
      ];
  "a Redis name without a number" =
    fails
      {
        server.database.redisDatabaseIds.other = 0;
        server.database.redis.a = { };
        systemd.services.a = sleep;
      }
      [
        "server.database.redis.a has no number: set server.database.redis.a.database_id, or add \"a\" to server.database.redisDatabaseIds (1 is free)."
      ];

  "no networks" = {
    modules = host "app1" {
      imports = [ x ];
      server.network.subnets = [ ];
    };
    expect.warnings = [
      "server.network.subnets is empty: the firewall of app1 lets no coordinator in on port 9876. Name the fleet's networks, or set server.database.guardian.openFirewall = false;"
    ];
  };
  "a service that nobody defines" = {
    modules = host "app1" {
      imports = [ x ];
      server.database.dependentServices = [
        "typo"
        "ty.po"
      ];
    };
    expect.warnings = [
      "server.database.dependentServices names typo.service, ty.po.service, which no systemd.services of app1 defines. Correct the name, unless a package brings the unit."
    ];
  };
  "a database that no service is named like" = {
    modules = host "app1" { server.database.postgres.a = { }; };
    expect = {
      warnings = [
        "app1 declares databases (a), and no systemd.services has such a name: nothing is drained here. Name what uses them in server.database.dependentServices."
      ];
      units."a.service" = null;
    };
  };
  "hosts for a coordinator that is not there" = {
    modules = host "app1" {
      imports = [ x ];
      server.database.coordinator.hosts = [ "app2" ];
    };
    expect.warnings = [
      "server.database.coordinator.hosts has no effect on app1: its coordinator is not enabled."
    ];
  };
  "a primary that tells nobody" = {
    modules = host "nixio" databases;
    expect.warnings = [
      "nixio is the primary and tells nobody: set server.database.coordinator.fleet = self.nixosConfigurations; or server.database.coordinator.hosts."
    ];
  };
}
