# On the primary: the databases, roles and passwords that the fleet's hosts declare.
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  fleet = import ../lib { inherit lib; };
  cfg = config.server.database;
  provision = cfg.provision;
  primary = config.server.ioPrimaryHost;

  declared =
    kind:
    lib.optionals (primary != null) (
      fleet.declarations kind primary cfg.coordinator.fleet ++ fleet.here primary cfg kind
    );
  # By name; what two hosts say of one name must be the same (assertions.nix).
  byName =
    declarations:
    lib.listToAttrs (map (d: lib.nameValuePair d.name d.value) (lib.reverseList declarations));
  postgres = byName provision.declared.postgres;
  redis = byName provision.declared.redis;

  sql = lib.concatMapStrings (db: ''
    \set role ${db.user}
    \set database ${db.database}
    ALTER DATABASE :"database" OWNER TO :"role";
    ${lib.optionalString cfg.useSops ''
      \set password `cat "$CREDENTIALS_DIRECTORY/${db.user}"`
      ALTER ROLE :"role" LOGIN PASSWORD :'password';
    ''}'') (lib.attrValues postgres);
  usesRedis = cfg.useSops && redis != { } && cfg.redisPasswordSecret != null;
in
{
  options.server.database = {
    provision = {
      enable = mkOption {
        type = types.bool;
        default = cfg.isPrimary && lib.elem "coordinator" cfg.parts;
        defaultText = lib.literalMD "whether this host is the primary";
        description = ''
          Whether the databases, roles and passwords of all hosts of `coordinator.fleet` are made on this host. What nobody
          declares any more is left alone.
        '';
      };
      openFirewall = mkOption {
        type = types.bool;
        default = false;
        description = "Whether the firewall of the primary lets `server.network.subnets` in on the ports of PostgreSQL and Redis.";
      };
      declared = mkOption {
        type = types.attrsOf types.raw;
        internal = true;
        readOnly = true;
        default = lib.genAttrs [
          "postgres"
          "redis"
        ] (kind: lib.optionals provision.enable (declared kind));
      };
      ports = mkOption {
        type = types.listOf types.port;
        internal = true;
        readOnly = true;
        default = lib.optionals provision.enable (
          lib.optional (postgres != { }) config.services.postgresql.settings.port
          ++ lib.optional (redis != { }) config.services.redis.servers."".port
        );
      };
    };
    redisPasswordSecret = mkOption {
      type = types.nullOr types.str;
      default =
        if cfg.useSops && (cfg.redis != { } || provision.declared.redis != [ ]) then
          "REDIS/PASSWORD"
        else
          null;
      defaultText = lib.literalMD "`REDIS/PASSWORD` where Redis and sops-nix are used, otherwise null";
      description = "Name of the sops secret that holds Redis' password. null: Redis has none, or `wait.redis.passwordFile` says where it is.";
    };
  };

  config = lib.mkMerge [
    (mkIf (provision.enable && postgres != { }) {
      services.postgresql = {
        ensureDatabases = lib.unique (map (db: db.database) (lib.attrValues postgres));
        ensureUsers = map (name: { inherit name; }) (
          lib.unique (map (db: db.user) (lib.attrValues postgres))
        );
        enableTCPIP = lib.mkDefault true;
        authentication = lib.concatMapStrings (
          db:
          lib.concatMapStrings (subnet: ''
            host "${db.database}" "${db.user}" ${ours.network subnet} scram-sha-256
          '') config.server.network.subnets
        ) (lib.attrValues postgres);
      };
    })
    (mkIf (provision.enable && postgres != { }) {
      # Each time, because a secret may have changed. PostgreSQL stays up when this fails: its journal says what to do.
      systemd.services.io-databases-provision = {
        description = "Owners and passwords of the fleet's PostgreSQL databases";
        wantedBy = [ "postgresql.target" ];
        requires = [ "postgresql-setup.service" ];
        after = [ "postgresql-setup.service" ];
        before = lib.optional cfg.coordinator.enable "io-database-coordinator.service";
        path = [ config.services.postgresql.package ];
        # The passwords go from the credential through psql's own quoting into the server, and into no log.
        script = ''
          psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --port=${toString config.services.postgresql.settings.port} postgres <<'SQL'
          SET log_statement = 'none';
          SET pg_stat_statements.track = 'none';
          SET pgaudit.log = 'none';
          SET log_min_error_statement = 'panic';
          SET log_min_duration_statement = -1;
          ${sql}SQL
        '';
        serviceConfig = import ./hardening.nix // {
          Type = "oneshot";
          RemainAfterExit = true;
          User = "postgres";
          LoadCredential = lib.optionals cfg.useSops (
            map (db: "${db.user}:${config.sops.secrets.${db.password.secret}.path}") (lib.attrValues postgres)
          );
          # The server's socket, and nothing else.
          RestrictAddressFamilies = [ "AF_UNIX" ];
          PrivateNetwork = true;
        };
      };
    })
    (mkIf (provision.enable && redis != { }) {
      services.redis.servers."" = {
        bind = lib.mkDefault null;
        requirePassFile = mkIf usesRedis (
          lib.mkDefault config.sops.secrets.${cfg.redisPasswordSecret}.path
        );
      };
    })
    (lib.optionalAttrs (options ? sops) {
      server.database.wait.redis.passwordFile = mkIf (
        cfg.useSops && cfg.redisPasswordSecret != null && (cfg.redis != { } || usesRedis)
      ) (lib.mkDefault config.sops.secrets.${cfg.redisPasswordSecret}.path);
      sops.secrets = mkIf cfg.useSops (
        lib.mkMerge (
          [
            (mkIf (cfg.redisPasswordSecret != null && (cfg.redis != { } || usesRedis)) {
              # Redis reads its password when it starts, and at no other time.
              ${cfg.redisPasswordSecret}.restartUnits = lib.optional usesRedis "redis.service";
            })
          ]
          ++ map (db: { ${db.password.secret}.restartUnits = [ "io-databases-provision.service" ]; }) (
            lib.optionals provision.enable (lib.attrValues postgres)
          )
          ++ map (db: {
            ${db.password.secret} = {
              inherit (db.password) owner path;
            }
            // lib.optionalAttrs (db.password.group != null) { inherit (db.password) group; };
          }) (lib.filter (db: db.password.owner != null) (lib.attrValues cfg.postgres))
        )
      );
    })
  ];
}
