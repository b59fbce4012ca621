# On the primary: undrains the fleet when the databases answer, and drains it before they go.
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
  coordinator = cfg.coordinator;
  postgresql = config.services.postgresql;
  redis = config.services.redis.servers."" or { enable = false; };
  # Servers that NixOS modules bring for themselves are no concern of the fleet: the first one, and those whose port somebody
  # of the fleet names.
  redisPorts = map (d: d.value.port) cfg.provision.declared.redis;
  redisServers = lib.filterAttrs (
    name: server: server.enable && (name == "" || lib.elem server.port redisPorts)
  ) config.services.redis.servers;
  redisUnit = name: "redis${lib.optionalString (name != "") "-${name}"}.service";
  hostsFile = "io-guardian/hosts";
  inherit (coordinator) waves;
  hasTiers = lib.any (lib.hasInfix " tier=") coordinator.hosts;
  inWaves = hasTiers || waves.size != null;

  # Where a server that listens on these addresses is reached from its own host.
  reach =
    addresses:
    let
      local = [
        "*"
        "0.0.0.0"
        "127.0.0.1"
        "::"
        "::1"
        "localhost"
      ];
      words = lib.filter (word: word != "") addresses;
    in
    if words == [ ] || lib.any (word: lib.elem (lib.removePrefix "-" word) local) words then
      "localhost"
    else
      lib.head words;
  # Of Redis the first alone is asked: one password is given, and only that server is known to have it. Others are up when
  # their units are.
  asksRedis = redis.enable && redis.port != 0;
  endpoints =
    lib.optionals postgresql.enable [
      "--postgres"
      (fleet.endpoint (reach (
        lib.splitString "," (
          lib.replaceStrings [ " " ] [ "" ] (postgresql.settings.listen_addresses or "localhost")
        )
      )) postgresql.settings.port)
    ]
    ++ lib.optionals asksRedis [
      "--redis"
      (fleet.endpoint (reach (lib.splitString " " (toString redis.bind))) redis.port)
    ];

  credentials = lib.optional (
    asksRedis && cfg.wait.redis.passwordFile != null
  ) "redis:${cfg.wait.redis.passwordFile}";
  # %d is systemd's: it must not be escaped.
  wait =
    utils.escapeSystemdExecArgs (
      [
        (lib.getExe' cfg.package "io-guardian")
        "wait"
      ]
      ++ endpoints
      ++ [
        "--attempts"
        "unlimited"
        "--interval"
        "1s"
      ]
    )
    + lib.optionalString (credentials != [ ]) " --redis-password-file %d/redis";
  tell =
    action: retryFor: more:
    utils.escapeSystemdExecArgs (
      [
        (lib.getExe' cfg.package "io-coordinator")
        action
        "--hosts-file"
        "/etc/${hostsFile}"
        "--generation-file"
        "/var/lib/io-coordinator/generation"
        "--timeout"
        coordinator.timeout
        "--connect-timeout"
        coordinator.connectTimeout
        "--retry-for"
        retryFor
        # Not a credential: a unit keeps those of its start, and the fleet may have another key by the time of the stop.
        "--psk-file"
        (toString cfg.psk)
      ]
      ++ more
    );
  undrain = tell "undrain" coordinator.undrainRetryFor (
    lib.optionals inWaves [
      "--settle"
      waves.settle
    ]
    ++ lib.optionals (waves.size != null) [
      "--wave-size"
      (toString waves.size)
    ]
    ++ lib.optionals (waves.jitter != null) [
      "--jitter"
      waves.jitter
    ]
    ++ lib.optional (inWaves && !waves.stopAtFailure) "--go-on"
  );
  # Supervised: systemd takes a command of a stop that was killed for the end of the stop.
  drain = tell "drain" coordinator.drainRetryFor (
    # The databases go, whoever has not been drained.
    lib.optional hasTiers "--go-on" ++ [ "--supervised" ]
  );
in
{
  options.server.database.coordinator = {
    enable = mkOption {
      type = types.bool;
      default = cfg.isPrimary && lib.elem "coordinator" cfg.parts && coordinator.hosts != [ ];
      defaultText = lib.literalMD "whether this host is the primary and has clients";
      description = "Whether this host tells the fleet when the databases come and go.";
    };
    fleet = mkOption {
      type = types.attrsOf types.raw;
      default = { };
      example = lib.literalExpression "self.nixosConfigurations";
      description = "The fleet's `nixosConfigurations`: where `hosts` and what is to be provisioned are read off.";
    };
    hosts = mkOption {
      type = types.listOf types.str;
      default =
        lib.optionals (config.server.ioPrimaryHost != null) (
          fleet.clients config.server.ioPrimaryHost coordinator.fleet
        )
        ++ lib.optional (cfg.isPrimary && cfg.guardian.enable) (
          fleet.told "localhost" cfg.guardian.port cfg.tier
        );
      defaultText = lib.literalMD "the hosts of `fleet` that name this one as their primary, and this one if it has dependents";
      example = [
        "app1"
        "app2:9999"
        "[fd00::7]"
        "queue1 tier=0"
      ];
      description = "The guardians to tell, each with its tier if it has one.";
    };
    units = mkOption {
      type = types.listOf types.str;
      default =
        lib.optional postgresql.enable "postgresql.service" ++ map redisUnit (lib.attrNames redisServers);
      defaultText = lib.literalMD "PostgreSQL's and Redis' services of this host";
      description = "The databases' units: before one of them stops, the fleet is drained; when they are up and answer, it is undrained.";
    };
    timeout = mkOption {
      type = ours.duration;
      default = "60s";
      description = "For each host. Longer than the guardians' `commandTimeout`.";
    };
    connectTimeout = mkOption {
      type = ours.duration;
      default = "5s";
      description = "Of that, until a host is reached. One that is frozen or cut off is given up after it, and tried again.";
    };
    undrainRetryFor = mkOption {
      type = ours.duration;
      default = "10m";
      description = "How long hosts that are not up yet are tried again after the databases came. Nothing waits for it; in waves the next one waits for 15 s of it, with `waves.stopAtFailure` for all of it.";
    };
    damping = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether an undrain waits when there were several a short while ago (from the fifth within 10 minutes on 10 s, then
        20, 40, 60 s): databases that crash again and again must not drag the fleet with them.
      '';
    };
    drainRetryFor = mkOption {
      type = ours.duration;
      default = "15s";
      description = "How long hosts that cannot be reached are tried again before the databases go without them.";
    };
    waves = {
      size = mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        example = 20;
        description = ''
          When the databases come, undrain at most so many hosts, and the next ones when they run. Hosts of different
          `server.database.tier` are different waves anyway; null: only they are.
        '';
      };
      settle = mkOption {
        type = ours.duration;
        default = "5s";
        description = "How long a wave must stay well before the next one begins.";
      };
      jitter = mkOption {
        type = types.nullOr ours.duration;
        default = null;
        example = "10s";
        description = "Undrain each host at a moment of its own within this time.";
      };
      stopAtFailure = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether a wave that fails keeps the next ones from being undrained. Then somebody has to go on by hand, as the unit's
          journal says; otherwise the next wave begins all the same. A drain always goes on.
        '';
      };
    };
    commands = mkOption {
      type = types.attrsOf types.str;
      internal = true;
      readOnly = true;
      default = {
        wait = lib.optionalString (endpoints != [ ]) wait;
        inherit undrain drain;
      };
      description = "Command lines of its unit, for units that do one of these for another reason.";
    };
    credentials = mkOption {
      type = types.listOf types.str;
      internal = true;
      readOnly = true;
      default = credentials;
      description = "What `commands.wait` reads.";
    };
    stopTimeout = mkOption {
      type = ours.duration;
      default = "105s";
      description = "How long the databases' stop may be held back. Longer than `timeout`, `drainRetryFor` and 27 s together (docs/TIMING.md).";
    };
  };

  config = mkIf coordinator.enable {
    environment.etc.${hostsFile}.text = lib.concatMapStrings (host: "${host}\n") coordinator.hosts;

    # The programs, for whoever looks, and their manual pages.
    environment.systemPackages = [ cfg.package ];

    users.users.io-coordinator = {
      isSystemUser = true;
      group = "io-coordinator";
      description = "io-coordinator";
    };
    users.groups.io-coordinator = { };

    systemd.services.io-database-coordinator = {
      description = "Undrain the fleet when the databases answer, drain it before they go";
      documentation = [ "man:io-coordinator(1)" ];
      # With each start of a database, and not with multi-user.target: a target waits for what it wants, and neither a boot
      # nor a switch should wait for a host that is off.
      wantedBy = coordinator.units;
      wants = [ "network-online.target" ];
      # Turned round at a stop: while it drains, databases and network are still up. So is the guardian of this host.
      after = [
        "network-online.target"
        "nss-lookup.target"
      ]
      ++ coordinator.units
      ++ lib.optional postgresql.enable "postgresql.target"
      ++ lib.optional cfg.guardian.enable "io-guardian.service";
      bindsTo = coordinator.units;
      # A restart drains and undrains the whole fleet: that is not for a deployment to do.
      restartIfChanged = false;
      startLimitIntervalSec = 0;
      environment.GUARDIAN_WIRE = cfg.wire;
      serviceConfig = import ./hardening.nix // {
        Type = "oneshot";
        RemainAfterExit = true;
        # A database that runs and does not answer is none: nobody is told to use it.
        ExecStartPre = lib.optional (endpoints != [ ]) wait;
        ExecStart =
          undrain + lib.optionalString coordinator.damping " --damping-file /run/io-coordinator/undrained";
        # Not ExecStop=: systemd leaves that out when the start is not over yet.
        ExecStopPost = drain;
        # A unit that fails drains the fleet. One that was stopped by a wave has told who is left.
        SuccessExitStatus = mkIf (inWaves && waves.stopAtFailure) 2;
        OOMPolicy = "continue";
        LoadCredential = credentials;
        # Not DynamicUser=: that moves the state folder to /var/lib/private, and one that is a mount of its own (a data set, a
        # bind mount of a root that is not kept) cannot be moved. Then systemd does not start this unit, and nobody is drained.
        User = "io-coordinator";
        Group = "io-coordinator";
        SupplementaryGroups = [ "io-guardian-psk" ];
        StateDirectory = "io-coordinator";
        # What it knows of the last minutes must not go with its unit.
        RuntimeDirectory = mkIf coordinator.damping "io-coordinator";
        RuntimeDirectoryPreserve = mkIf coordinator.damping true;
        TimeoutStopSec = coordinator.stopTimeout;
        # What a disk holds that does not answer cannot be killed: it is left behind, and not waited for.
        KillMode = "process";
        Restart = "on-failure";
        RestartSec = "10s";
        RestartPreventExitStatus = "64 78";
        # It tells hosts over TCP, and asks for their addresses: each name that is looked up has a thread while it is.
        TasksMax = 1024;
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      };
    };
  };
}
