# Holds the target until the databases answer.
{
  config,
  lib,
  utils,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  fleet = import ../lib { inherit lib; };
  cfg = config.server.database;
  wait = cfg.wait;
  none = cfg.postgres == { } && cfg.redis == { };

  endpoints =
    kind: declared: port:
    lib.optionals wait.${kind}.enable (
      lib.unique (
        if declared == { } then
          [ (fleet.endpoint cfg.host port) ]
        else
          map (db: fleet.endpoint db.host db.port) (lib.attrValues declared)
      )
    );
  flags =
    flag: values:
    lib.concatMap (value: [
      flag
      value
    ]) values;
  optional = flag: value: lib.optionals (value != null) (flags flag [ value ]);

  passwords = lib.filterAttrs (_: file: file != null) (
    lib.optionalAttrs wait.postgres.enable { postgres = wait.postgres.passwordFile; }
    // lib.optionalAttrs wait.redis.enable { redis = wait.redis.passwordFile; }
  );
  credentials = lib.mapAttrsToList (name: file: "${name}:${file}") passwords;
  # %d is systemd's: it must not be escaped.
  secrets =
    lib.optionalString (passwords ? postgres) " --password-file %d/postgres"
    + lib.optionalString (passwords ? redis) " --redis-password-file %d/redis";
  databases =
    flags "--postgres" (endpoints "postgres" cfg.postgres 5432)
    ++ lib.optionals wait.postgres.enable (
      optional "--user" wait.postgres.user
      ++ optional "--database" wait.postgres.database
      ++ lib.optional wait.postgres.requirePrimary "--require-primary"
    )
    ++ flags "--redis" (endpoints "redis" cfg.redis 6379)
    ++ lib.optionals wait.redis.enable (optional "--redis-user" wait.redis.user);
  arguments =
    databases
    ++ flags "--attempts" [ (if wait.attempts == null then "unlimited" else toString wait.attempts) ]
    ++ flags "--interval" [ wait.interval ]
    ++ flags "--timeout" [ wait.timeout ];

  secretFile =
    what:
    mkOption {
      type = types.nullOr ours.secretPath;
      default = null;
      example = "/run/secrets/${what}";
      description = "File that holds the password. Read by systemd and handed on as a credential; never in the store.";
    };
  kind = name: {
    enable = mkOption {
      type = types.bool;
      default = none || cfg.${name} != { };
      defaultText = lib.literalMD "whether this host declares one in `server.database.${name}`; with no declaration at all, true";
      description = "Whether the databases count as online only when this one answers.";
    };
  };
in
{
  options.server.database.wait = {
    attempts = mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      example = 60;
      description = ''
        How often a database may be found not ready before the wait fails, and with it the start of the target.
        null: it never fails, and the dependents start whenever the databases come.
      '';
    };
    interval = mkOption {
      type = ours.duration;
      default = "1s";
      description = "From the start of one attempt to the start of the next.";
    };
    timeout = mkOption {
      type = ours.duration;
      default = "5s";
      description = "For one attempt, the lookup of the name included.";
    };
    postgres = kind "postgres" // {
      user = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Role to log in as: PostgreSQL then is ready when `SELECT 1` comes back, and not before.";
      };
      database = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Database to log in to. null: the one named like the role.";
      };
      passwordFile = secretFile "POSTGRES/MYAPP_PASSWORD";
      requirePrimary = mkOption {
        type = types.bool;
        default = false;
        description = "Refuse a standby. Needs `user`: only a query tells.";
      };
    };
    asked = mkOption {
      type = types.attrsOf types.raw;
      internal = true;
      readOnly = true;
      default = {
        inherit databases secrets credentials;
        passwords = lib.attrNames passwords;
      };
      description = "Which databases are asked and as whom, as arguments: the guardian goes on asking them.";
    };
    redis = kind "redis" // {
      user = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "User of Redis' access control list. null: the default user.";
      };
      passwordFile = secretFile "REDIS/PASSWORD";
    };
  };

  config = mkIf cfg.hasDependents {
    systemd.services.wait-for-io-databases = {
      description = "Wait until the databases answer";
      documentation = [ "man:io-guardian(1)" ];
      wants = [ "network-online.target" ];
      after = [ "network-online.target" ];
      # A wait is not worth a drain: one that runs is not interrupted by a deployment.
      restartIfChanged = false;
      serviceConfig = import ./hardening.nix // {
        Type = "oneshot";
        # It prolongs this itself for as long as it makes sense.
        TimeoutStartSec = "90s";
        NotifyAccess = "main";
        ExecStart =
          utils.escapeSystemdExecArgs (
            [
              (lib.getExe' cfg.package "io-guardian")
              "wait"
            ]
            ++ arguments
          )
          + secrets;
        LoadCredential = credentials;
        DynamicUser = true;
        # It asks names, and databases over TCP.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      };
    };
  };
}
