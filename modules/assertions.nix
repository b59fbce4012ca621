# What cannot work is refused when it is evaluated: the rule, the values, the line to change. What has no effect warns.
{
  config,
  lib,
  options,
  ...
}:
let
  ours = import ./types.nix { inherit lib; };
  fleet = import ../lib { inherit lib; };
  inherit (ours) seconds;
  cfg = config.server.database;
  inherit (cfg)
    coordinator
    fence
    guardian
    provision
    ;
  primary = config.server.ioPrimaryHost;
  host = config.networking.hostName;
  member = cfg.hasDependents || coordinator.enable;

  # Other hosts of the fleet whose guardians take longer than we listen.
  members = fleet.members primary coordinator.fleet;
  late = lib.filterAttrs (
    _: member:
    member.guardian.enable && seconds member.guardian.commandTimeout >= seconds coordinator.timeout
  ) (removeAttrs members [ host ]);

  # The drain goes through them one after the other.
  tierOf = told: lib.last (lib.splitString " tier=" told);
  hasTier = lib.hasInfix " tier=";
  tiers =
    lib.length (lib.unique (map tierOf (lib.filter hasTier coordinator.hosts)))
    + (if lib.all hasTier coordinator.hosts then 0 else 1);

  # Hosts that undrain themselves before their wave.
  hasty = lib.filterAttrs (
    _: member:
    member.guardian.enable
    && member.guardian.watch.enable
    && member.guardian.watch.undrainAfter != null
    && seconds member.guardian.watch.undrainAfter < 60
  ) members;

  # What is watched, and what its own words or the fence's make of it.
  watched = lib.optionalAttrs fence.enable fence.watched;
  beatOf = folder: if folder.heartbeat != null then folder.heartbeat else fence.heartbeat;
  unwatched = test: lib.attrNames (lib.filterAttrs (_: test) watched);
  limitOf = folder: if folder.busyLimit != null then folder.busyLimit else fence.busyLimit;
  impatient = unwatched (
    folder: limitOf folder != null && seconds (limitOf folder) < seconds (beatOf folder)
  );
  restless = unwatched (
    folder: folder.sleep != null && seconds folder.sleep * 2 >= seconds (beatOf folder)
  );
  tooLate = unwatched (folder: seconds folder.warnLatency >= seconds (beatOf folder));
  harmless = unwatched (folder: folder.ports == [ ] && folder.udpPorts == [ ]);
  # A folder with this name is given to io-fence, and closed to others: it must be nobody's.
  notOurs = unwatched (
    folder:
    lib.elem folder.path (
      map toString (
        lib.optionals config.services.postgresql.enable [
          config.services.postgresql.dataDir
          (dirOf config.services.postgresql.dataDir)
        ]
        ++ lib.concatMap (folder: folder.through) (lib.attrValues watched)
        ++ lib.attrNames config.fileSystems
      )
    )
  );
  # A disk that is mounted at the data folder itself has no room beside it.
  elsewhere =
    watched ? postgresql
    && config.services.postgresql.enable
    && config.fileSystems ? ${toString config.services.postgresql.dataDir}
    && !lib.hasPrefix "${toString config.services.postgresql.dataDir}/" watched.postgresql.path;

  # What other hosts wait for, and would never get.
  waiting =
    kind:
    lib.filterAttrs (_: member: member.hasDependents && member.wait.${kind}.enable) (
      removeAttrs members [ host ]
    );
  # Only where they ask this host, and not a server of their own choice.
  asks =
    kind: member:
    member.${kind} == { } || lib.any (db: db.host == member.host) (lib.attrValues member.${kind});
  hasRedis = lib.any (server: server.enable) (lib.attrValues config.services.redis.servers);
  missing =
    kind: has:
    lib.optionals (coordinator.enable && !has) (
      lib.attrNames (lib.filterAttrs (_: asks kind) (waiting kind))
    );
  redisHasPassword =
    let
      server = config.services.redis.servers."" or { };
    in
    (server.requirePassFile or null) != null || (server.requirePass or null) != null;
  withoutPassword = lib.optionals (coordinator.enable && redisHasPassword) (
    lib.attrNames (
      lib.filterAttrs (_: member: asks "redis" member && member.wait.redis.passwordFile == null) (
        waiting "redis"
      )
    )
  );

  # Ports that other hosts ask at, and where nobody listens: [ { name; kind; port; } ].
  asked =
    kind: default: member:
    if member.${kind} == { } then
      [ default ]
    else
      map (db: db.port) (lib.filter (db: db.host == member.host) (lib.attrValues member.${kind}));
  deaf =
    kind: default: ports:
    lib.optionals (coordinator.enable && ports != [ ]) (
      lib.concatLists (
        lib.mapAttrsToList (
          name: member:
          map (port: { inherit name port; }) (
            lib.unique (lib.filter (port: !lib.elem port ports) (asked kind default member))
          )
        ) (waiting kind)
      )
    );
  postgresPorts = lib.optional config.services.postgresql.enable config.services.postgresql.settings.port;
  redisPorts = map (server: server.port) (
    lib.filter (server: server.enable) (lib.attrValues config.services.redis.servers)
  );

  # Pairs of declarations, each once, that must not both be: [ { first; second; } ].
  meeting =
    test: declarations:
    lib.concatLists (
      lib.imap0 (
        i: first:
        map (second: { inherit first second; }) (lib.filter (test first) (lib.drop (i + 1) declarations))
      ) declarations
    );
  postgres = provision.declared.postgres;
  redis = provision.declared.redis;
  oneName = meeting (
    a: b: a.name == b.name && !(a.value.database == b.value.database && a.value.user == b.value.user)
  ) postgres;
  oneRole = meeting (
    a: b:
    a.name != b.name
    && a.value.user == b.value.user
    && a.value.password.secret != b.value.password.secret
  ) postgres;
  oneDatabase = meeting (
    a: b: a.name != b.name && a.value.database == b.value.database && a.value.user != b.value.user
  ) postgres;
  twoNumbers = meeting (a: b: a.name == b.name && a.value.database_id != b.value.database_id) redis;
  numbered = lib.filter (d: d.value.database_id != null) redis;
  oneNumber = meeting (a: b: a.name != b.name && a.value.database_id == b.value.database_id) numbered;
  taken = map (d: d.value.database_id) numbered ++ lib.attrValues cfg.redisDatabaseIds;

  # By the names of the configurations first: to ask a host for its name means to evaluate it.
  nobodyIsPrimary =
    coordinator.fleet != { }
    && primary != null
    && !(coordinator.fleet ? ${primary})
    && !lib.any (other: other.config.networking.hostName == primary) (lib.attrValues coordinator.fleet);

  base = lib.removeSuffix ".service";
  # An instance is its template's: worker@1 comes of worker@.
  template = name: "${lib.head (lib.splitString "@" name)}@";
  defined = name: config.systemd.services ? ${name} || config.systemd.services ? ${template name};
  unknown = lib.filter (unit: lib.hasSuffix ".service" unit && !defined (base unit)) cfg.dependents;

  stopTimeout = name: config.systemd.services.${name}.serviceConfig.TimeoutStopSec or null;
  # Only what is written as a duration of ours is compared; the guardian compares the rest when it starts.
  slow = lib.filter (
    unit:
    lib.hasSuffix ".service" unit
    && (
      let
        stop = stopTimeout (base unit);
      in
      (lib.isInt stop && stop >= seconds guardian.commandTimeout)
      || (
        lib.isString stop && ours.duration.check stop && seconds stop >= seconds guardian.commandTimeout
      )
    )
  ) cfg.dependents;

  free = lib.subtractLists taken (lib.range 0 15);
  nextFree =
    if free == [ ] then "no number is free: Redis has 16" else "${toString (lib.head free)} is free";
  show = v: if v == null then "null" else toString v;
in
{
  config = {
    assertions = [
      {
        assertion = !member || primary != null;
        message = "server.ioPrimaryHost is not set, and ${host} uses databases: name the host that runs them, for example server.ioPrimaryHost = \"nixio\";";
      }
      {
        assertion = !cfg.useSops || options ? sops;
        message = "server.database.useSops is set on ${host}, and sops-nix is not imported: import it, or name the key's file with server.database.pskFile.";
      }
      {
        assertion = !cfg.needsPsk || cfg.psk != null;
        message = "io-guardian on ${host} has no key: import sops-nix and put IO_GUARDIAN_PSK into its secrets, or name the file that holds it with server.database.pskFile.";
      }
      {
        assertion = !coordinator.enable || cfg.isPrimary;
        message = "server.database.coordinator.enable is set on ${host}, but server.ioPrimaryHost is ${show primary}: the coordinator belongs on the host whose databases it watches.";
      }
      {
        assertion = !coordinator.enable || coordinator.units != [ ];
        message = "The coordinator on ${host} has no database to follow: enable services.postgresql or services.redis.servers, or name their units with server.database.coordinator.units.";
      }
      {
        assertion = !coordinator.enable || coordinator.hosts != [ ];
        message = "The coordinator on ${host} has nobody to tell: set server.database.coordinator.fleet = self.nixosConfigurations; or server.database.coordinator.hosts.";
      }
      {
        assertion =
          !guardian.enable
          || !coordinator.enable
          || seconds guardian.commandTimeout < seconds coordinator.timeout;
        message = "A guardian must answer before the coordinator stops listening: server.database.guardian.commandTimeout (${guardian.commandTimeout}) must be shorter than server.database.coordinator.timeout (${coordinator.timeout}).";
      }
      {
        assertion =
          !coordinator.enable
          ||
            tiers * (seconds coordinator.timeout + seconds coordinator.drainRetryFor) + 27
            < seconds coordinator.stopTimeout;
        message = "A drain must be over before systemd ends it: server.database.coordinator.timeout (${coordinator.timeout}) and drainRetryFor (${coordinator.drainRetryFor})${
          lib.optionalString (tiers > 1) ", for each of ${toString tiers} tiers"
        }, and 27 s for the generation and a second look, together must be shorter than stopTimeout (${coordinator.stopTimeout}).";
      }
      {
        assertion = !guardian.enable || slow == [ ];
        message = "A dependent must stop before its drain is given up: TimeoutStopSec of ${lib.concatStringsSep ", " slow} must be shorter than server.database.guardian.commandTimeout (${guardian.commandTimeout}).";
      }
      {
        assertion = !cfg.wait.postgres.requirePrimary || cfg.wait.postgres.user != null;
        message = "server.database.wait.postgres.requirePrimary needs server.database.wait.postgres.user: only a query tells a primary from a standby.";
      }
      {
        assertion = cfg.wait.postgres.passwordFile == null || cfg.wait.postgres.user != null;
        message = "server.database.wait.postgres.passwordFile needs server.database.wait.postgres.user: whose password is it?";
      }
      {
        assertion = !cfg.hasDependents || cfg.wait.postgres.enable || cfg.wait.redis.enable;
        message = "${host} has dependents and nothing to wait for: enable server.database.wait.postgres or server.database.wait.redis.";
      }
      {
        assertion =
          !provision.enable || provision.declared.postgres == [ ] || config.services.postgresql.enable;
        message = "PostgreSQL databases are declared (${
          lib.concatMapStringsSep ", " (d: "${d.name} by ${d.host}") provision.declared.postgres
        }), and ${host}, their primary, has no PostgreSQL: set services.postgresql.enable = true; or server.database.provision.enable = false;";
      }
      {
        assertion = !provision.enable || redis == [ ] || (config.services.redis.servers."".enable or false);
        message = "Redis databases are declared (${
          lib.concatMapStringsSep ", " (d: "${d.name} by ${d.host}") redis
        }), and ${host}, their primary, has no Redis: set services.redis.servers.\"\".enable = true; or server.database.provision.enable = false;";
      }
      {
        assertion = !fence.enable || watched != { };
        message = "io-fence on ${host} has nothing to watch: enable services.postgresql or services.redis.servers, or name a folder and its ports with server.database.fence.folders.<name>.";
      }
      {
        assertion = !fence.enable || fence.onFence != "drain" || coordinator.enable;
        message = "server.database.fence.onFence is \"drain\" on ${host}, which has no coordinator that could drain anybody: set it to \"nothing\", or see why server.database.coordinator.enable is false.";
      }
      {
        assertion = !fence.enable || fence.cut != [ ];
        message = "server.database.fence.cut is empty on ${host}: a fence that ends neither new connections nor established ones is none. Set it to [ \"new\" \"established\" ].";
      }
      {
        assertion = !elsewhere;
        message = "PostgreSQL's data folder on ${host}, ${toString config.services.postgresql.dataDir}, is a disk of its own, and ${watched.postgresql.path or ""} is not on it: mount the disk at ${dirOf (toString config.services.postgresql.dataDir)}, so that a folder of io-fence's is beside the data, or set server.database.fence.folders.postgresql.path to a folder on that disk.";
      }
    ]
    ++ map (name: {
      assertion = false;
      message = "io-fence must look at a disk more than twice before it gives it up: server.database.fence.folders.${name}.sleep (${watched.${name}.sleep}) must be shorter than half of its heartbeat (${beatOf watched.${name}}).";
    }) restless
    ++ map (name: {
      assertion = false;
      message = "A disk that is busy is given no less time than one that hangs: server.database.fence.folders.${name}.busyLimit (${limitOf watched.${name}}) must not be shorter than its heartbeat (${beatOf watched.${name}}). Make it as long, and busy disks are not told from others.";
    }) impatient
    ++ map (name: {
      assertion = false;
      message = "server.database.fence.folders.${name} closes nothing: name the ports that hang on ${watched.${name}.path} with its ports or udpPorts, or set its enable to false.";
    }) harmless
    ++ map (name: {
      assertion = false;
      message = "server.database.fence.folders.${name}.path is ${watched.${name}.path}, which is not io-fence's own: it would be closed to all others. Name a folder within it: ${watched.${name}.path}/io-fence.";
    }) notOurs
    ++ map (name: {
      assertion = false;
      message = "A guardian must answer before the coordinator stops listening: server.database.guardian.commandTimeout (${
        members.${name}.guardian.commandTimeout
      }) of ${name} must be shorter than server.database.coordinator.timeout (${coordinator.timeout}) of ${host}.";
    }) (lib.optionals coordinator.enable (lib.attrNames late))
    ++ map (name: {
      assertion = false;
      message = "${name} waits for PostgreSQL, and ${host}, its primary, has none: its services would never start. Set services.postgresql.enable = true; here, or server.database.wait.postgres.enable = false; on ${name}.";
    }) (missing "postgres" config.services.postgresql.enable)
    ++ map (name: {
      assertion = false;
      message = "${name} waits for Redis, and ${host}, its primary, has none: its services would never start. Set services.redis.servers.\"\".enable = true; here, or server.database.wait.redis.enable = false; on ${name}.";
    }) (missing "redis" hasRedis)
    ++ map (name: {
      assertion = false;
      message = "${name} waits for Redis without a password, and Redis on ${host} has one: its services would never start. On ${name}, set server.database.wait.redis.passwordFile, or server.database.wait.redis.enable = false;";
    }) withoutPassword
    ++ map (c: {
      assertion = false;
      message = "server.database.postgres.${c.first.name} means different things on ${c.first.host} (database ${c.first.value.database}, user ${c.first.value.user}) and ${c.second.host} (database ${c.second.value.database}, user ${c.second.value.user}): rename one of them.";
    }) oneName
    ++ map (c: {
      assertion = false;
      message = "server.database.redis.${c.first.name} has number ${show c.first.value.database_id} on ${c.first.host} and ${show c.second.value.database_id} on ${c.second.host}: give it one, in server.database.redisDatabaseIds.";
    }) twoNumbers
    ++ map (c: {
      assertion = false;
      message = "Redis database ${toString c.first.value.database_id} belongs to ${c.first.name} on ${c.first.host} and to ${c.second.name} on ${c.second.host}: give one of them another number (${nextFree}).";
    }) oneNumber
    ++ map (d: {
      assertion = false;
      message = "${d.name} asks for PostgreSQL on port ${toString d.port}, and ${host}'s listens on ${
        lib.concatMapStringsSep ", " toString postgresPorts
      }: set server.database.postgres.<name>.port on ${d.name}.";
    }) (deaf "postgres" 5432 postgresPorts)
    ++ map (d: {
      assertion = false;
      message = "${d.name} asks for Redis on port ${toString d.port}, and ${host}'s listens on ${
        lib.concatMapStringsSep ", " toString redisPorts
      }: set server.database.redis.<name>.port on ${d.name}.";
    }) (deaf "redis" 6379 redisPorts)
    ++ map (c: {
      assertion = false;
      message = "server.database.postgres.${c.first.name} on ${c.first.host} and ${c.second.name} on ${c.second.host} share the role ${c.first.value.user} and have two passwords for it (${c.first.value.password.secret}, ${c.second.value.password.secret}): give both one password.secret, or roles of their own.";
    }) oneRole
    ++ map (c: {
      assertion = false;
      message = "server.database.postgres.${c.first.name} on ${c.first.host} and ${c.second.name} on ${c.second.host} share the database ${c.first.value.database}, and it has one owner: give both one user (${c.first.value.user} or ${c.second.value.user}).";
    }) oneDatabase
    ++ map (name: {
      assertion = false;
      message = "server.database.redis.${name} has no number: set server.database.redis.${name}.database_id, or add \"${name}\" to server.database.redisDatabaseIds (${nextFree}).";
    }) (lib.attrNames (lib.filterAttrs (_: db: db.database_id == null) cfg.redis));

    warnings =
      map (
        name:
        "server.database.fence.folders.${name}.warnLatency (${watched.${name}.warnLatency}) has no effect: after ${beatOf watched.${name}} its ports are closed already. Make it shorter."
      ) tooLate
      ++
        lib.optional (guardian.enable && guardian.openFirewall && config.server.network.subnets == [ ])
          "server.network.subnets is empty: the firewall of ${host} lets no coordinator in on port ${toString guardian.port}. Name the fleet's networks, or set server.database.guardian.openFirewall = false;"
      ++
        lib.optional (coordinator.enable && (tiers > 1 || coordinator.waves.size != null) && hasty != { })
          "The fleet is undrained in waves, and ${lib.concatStringsSep ", " (lib.attrNames hasty)} undrain themselves before it is their turn: set server.database.guardian.watch.undrainAfter there to longer than the waves take (\"10m\"), or to null."
      ++ lib.optional nobodyIsPrimary "server.ioPrimaryHost is ${primary}, and no host of server.database.coordinator.fleet has that networking.hostName (it has ${lib.concatStringsSep ", " (lib.attrNames coordinator.fleet)}): nobody is told when the databases come and go."
      ++
        lib.optional (unknown != [ ])
          "server.database.dependentServices names ${lib.concatStringsSep ", " unknown}, which no systemd.services of ${host} defines. Correct the name, unless a package brings the unit."
      ++
        lib.optional (cfg.hasDependents && cfg.dependents == [ ])
          "${host} declares databases (${
            lib.concatStringsSep ", " (lib.unique (lib.attrNames cfg.postgres ++ lib.attrNames cfg.redis))
          }), and no systemd.services has such a name: nothing is drained here. Name what uses them in server.database.dependentServices."
      ++ lib.optional (
        !coordinator.enable && options.server.database.coordinator.hosts.highestPrio < 1000
      ) "server.database.coordinator.hosts has no effect on ${host}: its coordinator is not enabled."
      ++
        lib.optional (cfg.isPrimary && coordinator.hosts == [ ] && !coordinator.enable)
          "${host} is the primary and tells nobody: set server.database.coordinator.fleet = self.nixosConfigurations; or server.database.coordinator.hosts.";
  };
}
