# What a host says of itself: where the databases are, and which of them it uses.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.server.database;

  secretName =
    name:
    lib.toUpper (
      lib.concatMapStrings (c: if builtins.match "[A-Za-z0-9]" c == null then "_" else c) (
        lib.stringToCharacters name
      )
    );

  # What needs no quoting anywhere: these go into SQL, into pg_hba.conf and into names of credentials.
  plainName = types.strMatching "[A-Za-z0-9_][A-Za-z0-9_.-]*";

  hostAndPort = default: {
    host = mkOption {
      type = types.str;
      default = cfg.host;
      defaultText = lib.literalExpression "config.server.database.host";
      example = "db.example.net";
      description = "Host of this database.";
    };
    port = mkOption {
      type = types.port;
      inherit default;
      description = "Port of this database.";
    };
  };

  postgres =
    { name, ... }:
    {
      options = {
        database = mkOption {
          type = plainName;
          default = name;
          defaultText = lib.literalMD "the attribute name";
          description = "Name of the database.";
        };
        user = mkOption {
          type = plainName;
          default = name;
          defaultText = lib.literalMD "the attribute name";
          description = "Role that owns the database.";
        };
        password = {
          secret = mkOption {
            type = types.str;
            default = "POSTGRES/${secretName name}_PASSWORD";
            defaultText = lib.literalMD "`POSTGRES/<NAME>_PASSWORD`, the name in upper case";
            description = "Name of the sops secret that holds the role's password, on this host and on the primary.";
          };
          path = mkOption {
            type = types.str;
            default = "/run/secrets/POSTGRES/${secretName name}_PASSWORD";
            defaultText = lib.literalMD "where sops-nix puts the secret";
            description = "File on this host that holds the role's password, for the service to read.";
          };
          owner = mkOption {
            type = types.nullOr types.str;
            default = null;
            example = "myapp";
            description = "User that may read the password. With null no secret is declared on this host, only on the primary.";
          };
          group = mkOption {
            type = types.nullOr types.str;
            default = null;
            description = "Group of the password's file. null: the group of the owner.";
          };
        };
      }
      // hostAndPort 5432;
    };

  redis =
    { name, ... }:
    {
      options = {
        prefix = mkOption {
          type = types.str;
          default = "${name}:";
          defaultText = lib.literalMD "the attribute name and a colon";
          description = "Prefix of this user's keys, by convention: nothing enforces it.";
        };
        database_id = mkOption {
          type = types.nullOr (types.ints.between 0 15);
          default = cfg.redisDatabaseIds.${name} or null;
          defaultText = lib.literalExpression "config.server.database.redisDatabaseIds.\${name} or null";
          example = 3;
          description = ''
            Number of the Redis database. It is written down and never worked out: a number that changed when another
            service came would swap the data of the two.
          '';
        };
      }
      // hostAndPort 6379;
    };
in
{
  options.server = {
    ioPrimaryHost = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "nixio";
      description = "`networking.hostName` of the machine that runs PostgreSQL and Redis.";
    };
    database = {
      package = mkOption {
        type = types.package;
        description = "The io-guardian package. The flake's modules set it.";
      };
      parts = mkOption {
        type = types.listOf (
          types.enum [
            "guardian"
            "coordinator"
          ]
        );
        default = [
          "guardian"
          "coordinator"
        ];
        internal = true;
        description = "What turns itself on where it is needed.";
      };
      host = mkOption {
        type = types.nullOr types.str;
        default = if cfg.isPrimary then "localhost" else config.server.ioPrimaryHost;
        defaultText = lib.literalMD "`localhost` on the primary, `server.ioPrimaryHost` elsewhere";
        description = "Name or address at which this host reaches the databases.";
      };
      tier = mkOption {
        type = types.nullOr (types.ints.between 0 99);
        default = null;
        example = 1;
        description = ''
          When the fleet is undrained: hosts of a lower tier come before those of a higher one, and hosts without one after all. A
          drain goes the same way back. null on all hosts: all at once.
        '';
      };
      isPrimary = mkOption {
        type = types.bool;
        readOnly = true;
        default =
          config.server.ioPrimaryHost != null && config.networking.hostName == config.server.ioPrimaryHost;
        defaultText = lib.literalExpression "config.networking.hostName == config.server.ioPrimaryHost";
        description = "Whether this host is the primary.";
      };
      postgres = mkOption {
        type = types.attrsOf (types.submodule postgres);
        default = { };
        example = lib.literalExpression "{ myapp = { }; }";
        description = ''
          PostgreSQL databases that this host uses. Where `systemd.services.<name>` exists it becomes a dependent: it
          runs only while the databases are online.
        '';
      };
      redis = mkOption {
        type = types.attrsOf (types.submodule redis);
        default = { };
        example = lib.literalExpression "{ myapp.database_id = 3; }";
        description = "Redis databases that this host uses; otherwise like `postgres`.";
      };
      redisDatabaseIds = mkOption {
        type = types.attrsOf (types.ints.between 0 15);
        default = { };
        example = lib.literalExpression "lib.importJSON ./redis-database-ids.json";
        description = "Numbers of Redis databases by name, for the whole fleet: import one file on every host.";
      };
    };
  };
}
