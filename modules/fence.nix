# On a host with databases: closes their ports to other hosts while the disk below them does not answer.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  fleet = import ../lib { inherit lib; };
  cfg = config.server.database;
  fence = cfg.fence;
  program = lib.getExe' cfg.package "io-fence";
  toml = pkgs.formats.toml { };
  verdict = types.enum [
    "fence"
    "warn"
    "ignore"
  ];
  stallsWith =
    default: what:
    mkOption {
      type = verdict;
      inherit default;
      description = "What becomes of the folder's ports when ${what}.";
    };

  postgresql = config.services.postgresql;
  dataFolder = toString postgresql.dataDir;
  # NixOS makes the data folder below /var/lib/postgresql, which is postgres' own. Another one is somebody's who knows its owner.
  madeByNixos = lib.hasPrefix "/var/lib/postgresql/" dataFolder;
  # Servers without a TCP port have nothing that could be closed.
  redisServers = lib.filterAttrs (
    _: server: server.enable && server.port != 0
  ) config.services.redis.servers;
  redisName = name: "redis${lib.optionalString (name != "") "-${name}"}";
  # Those whose folder is the one that NixOS makes, and keeps closed.
  redisClosed = lib.filterAttrs (
    name: _:
    fence.folders.${redisName name}.enable
    && fence.folders.${redisName name}.path == "/var/lib/${redisName name}/io-fence"
  ) redisServers;
  databases =
    lib.optional postgresql.enable "postgresql.service"
    ++ map (name: "${redisName name}.service") (lib.attrNames redisServers);

  # Without a coordinator it is refused (assertions.nix).
  drains = fence.onFence == "drain" && cfg.coordinator.enable;
  drainUnit = "io-fence-drain.service";
  undrainUnit = "io-fence-undrain.service";

  watched = lib.filterAttrs (_: folder: folder.enable) fence.folders;
  described =
    folder:
    {
      inherit (folder) path ports;
      udp-ports = folder.udpPorts;
      on-error = folder.onError;
      warn-latency = folder.warnLatency;
    }
    // lib.optionalAttrs (folder.heartbeat != null) { inherit (folder) heartbeat; }
    // lib.optionalAttrs (folder.busyLimit != null) { busy-limit = folder.busyLimit; }
    // lib.optionalAttrs (folder.sleep != null) { inherit (folder) sleep; };
  written = toml.generate "io-fence.toml" fence.settings;
  # A configuration that io-fence would refuse is refused here, and never reaches a host.
  checked =
    if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
      pkgs.runCommand "io-fence-checked.toml" { } ''
        ${program} run --check-config --config ${written}
        cp ${written} $out
      ''
    else
      written;

  # What the coordinator does at a stop of the databases, done while they run. Nothing here may need the disk: one that stalls may be
  # the root's.
  told = description: other: what: {
    inherit description;
    documentation = [ "man:io-fence(1)" ];
    # Whichever was asked for last goes on. The order is that of the stop of the one and the start of the other, too: first the stop.
    conflicts = [ other ];
    after = [
      "network-online.target"
      "nss-lookup.target"
    ]
    ++ lib.optional (other == drainUnit) other;
    restartIfChanged = false;
    startLimitIntervalSec = 0;
    environment.GUARDIAN_WIRE = cfg.wire;
    serviceConfig =
      import ./hardening.nix
      // {
        Type = "oneshot";
        User = "io-coordinator";
        Group = "io-coordinator";
        SupplementaryGroups = [ "io-guardian-psk" ];
        # Not StateDirectory=, and no folders made in /tmp: before the program begins systemd would write to a disk. The folder is
        # there: the coordinator's unit makes it.
        ProtectSystem = "full";
        PrivateTmp = false;
        PrivateDevices = false;
        DevicePolicy = "closed";
        # What a disk holds that does not answer cannot be killed: it is left behind, and not waited for.
        KillMode = "process";
        TimeoutStopSec = "5s";
        # The other one was asked for.
        SuccessExitStatus = "SIGTERM";
        OOMPolicy = "continue";
        TasksMax = 1024;
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      }
      // what;
  };

  folder = {
    options = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = "Whether this folder is watched.";
      };
      path = mkOption {
        type = types.strMatching "/.*[^/]";
        example = "/srv/mysql/io-fence";
        description = ''
          A folder of io-fence's own on the disk that is watched: it writes a file there, again and again. It is made if it is not
          there. Never a database's data folder itself: PostgreSQL does not start in one that others may write to.
        '';
      };
      owner = mkOption {
        type = types.str;
        default = "root";
        example = "mysql";
        description = ''
          Who owns `path`: the owner of the folder around it, or root's where that is root's. systemd-tmpfiles makes nobody a
          folder within another user's.
        '';
      };
      through = mkOption {
        type = types.listOf (types.strMatching "/.*[^/]");
        default = [ ];
        example = [ "/srv/mysql" ];
        description = ''
          Folders around `path` that are closed to others: an ACL lets io-fence pass through them, and neither list nor read what is
          there. The file system must have ACLs.
        '';
      };
      ports = mkOption {
        type = types.listOf types.port;
        default = [ ];
        example = [ 3306 ];
        description = "TCP ports that are closed to other hosts while the disk does not answer.";
      };
      udpPorts = mkOption {
        type = types.listOf types.port;
        default = [ ];
        description = "UDP ports, likewise.";
      };
      heartbeat = mkOption {
        type = types.nullOr ours.duration;
        default = null;
        example = "2s";
        description = "How long the disk may not answer before the ports are closed. null: `server.database.fence.heartbeat`.";
      };
      busyLimit = mkOption {
        type = types.nullOr ours.duration;
        default = null;
        example = "4s";
        description = "The same while it completes what others write. null: `server.database.fence.busyLimit`.";
      };
      sleep = mkOption {
        type = types.nullOr ours.duration;
        default = null;
        example = "200ms";
        description = "From the end of one write to the next; shorter than half of `heartbeat`. null: a fifth of it, at most a second.";
      };
      warnLatency = mkOption {
        type = ours.duration;
        default = "500ms";
        description = "From this latency on (p99 of the last minute) a warning is logged, before it is an outage.";
      };
      onError = {
        eio = stallsWith "fence" "the disk returns errors (EIO)";
        enospc = stallsWith "warn" "it is full (ENOSPC)";
        erofs = stallsWith "fence" "it has become read-only (EROFS)";
        vanished = stallsWith "fence" "the folder is gone";
        other = stallsWith "fence" "the write fails for another reason";
      };
    };
  };
in
{
  options.server.database.fence = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether this host closes ports to other hosts while the disk below them does not answer: a database that accepts connections
        and answers none is worse for its clients than one that refuses.
      '';
    };
    folders = mkOption {
      type = types.attrsOf (types.submodule folder);
      default = { };
      defaultText = lib.literalMD "one for PostgreSQL (`postgresql`) and one for each Redis with a TCP port (`redis`, `redis-NAME`), where they are enabled on this host";
      example = lib.literalExpression ''{ mysql = { path = "/srv/mysql/io-fence"; owner = "mysql"; ports = [ 3306 ]; }; }'';
      description = "What is watched, and which ports hang on it.";
    };
    heartbeat = mkOption {
      type = ours.duration;
      default = "5s";
      description = "How long a disk may not answer before its ports are closed.";
    };
    busyLimit = mkOption {
      type = types.nullOr ours.duration;
      default = null;
      example = "10s";
      description = ''
        How long a disk may not answer while the kernel counts writes of others that it completes: it is busy, and does not hang. Not shorter
        than `heartbeat`; as long as that: it is not looked at. null: three heartbeats.
      '';
    };
    unfenceAfter = mkOption {
      type = ours.duration;
      default = "5s";
      description = "How long it must have answered without a gap before they are open again.";
    };
    wait = mkOption {
      type = types.nullOr ours.duration;
      default = null;
      example = "1m";
      description = "How long after io-fence's own start a folder that has never answered is left alone. null: `heartbeat`. A fence that stands stays.";
    };
    cut = mkOption {
      type = types.listOf (
        types.enum [
          "new"
          "established"
        ]
      );
      default = [
        "new"
        "established"
      ];
      description = "What a fence ends: `new` connections are refused, `established` ones are reset. Without `established`, a client that only waits goes on waiting.";
    };
    allow = mkOption {
      type = types.listOf ours.subnet;
      default = [ ];
      example = [ "192.168.1.10/32" ];
      description = "Who is never shut out, beside the host itself. Nobody: an exception sees the database hang.";
    };
    onFence = mkOption {
      type = types.enum [
        "nothing"
        "drain"
      ];
      default = "nothing";
      description = ''
        Whether the fleet is drained when ports are closed, and undrained when they are open again and the databases answer. Without it
        guardians that watch the databases drain their hosts by themselves after half a minute.
      '';
    };
    reporterUsers = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "mysql" ];
      description = "Users whose own `io-fence reporter` may register folders, beside those that are watched here.";
    };
    metrics = ours.metrics {
      of = "io-fence";
      port = 9879;
    };
    settings = mkOption {
      type = types.submodule { freeformType = toml.type; };
      default = { };
      description = "io-fence's configuration file, from the options above: see `io-fence run --help`. It is checked when it is built.";
    };
    watched = mkOption {
      type = types.attrsOf types.raw;
      internal = true;
      readOnly = true;
      default = watched;
    };
  };

  config = mkIf fence.enable (
    lib.mkMerge [
      {
        server.database.fence.settings = {
          inherit (fence) heartbeat cut allow;
          unfence-after = fence.unfenceAfter;
          reporter-users = fence.reporterUsers;
          folder = map described (lib.attrValues watched);
        }
        // lib.optionalAttrs (fence.busyLimit != null) { busy-limit = fence.busyLimit; }
        // lib.optionalAttrs (fence.wait != null) { inherit (fence) wait; }
        // lib.optionalAttrs drains {
          on-fence-unit = drainUnit;
          on-unfence-unit = undrainUnit;
        }
        // lib.optionalAttrs fence.metrics.enable {
          metrics = fleet.endpoint fence.metrics.address fence.metrics.port;
        };

        # The program, for commands by hand, and its manual page.
        environment.systemPackages = [ cfg.package ];

        users.users.io-fence = {
          isSystemUser = true;
          group = "io-fence";
          description = "io-fence";
        };
        users.groups.io-fence = { };

        # Its folders, before any database starts.
        systemd.tmpfiles.rules = lib.concatMap (
          folder:
          map (outer: "a+ ${outer} - - - - u:io-fence:--x") folder.through
          ++ [ "d ${folder.path} 0770 ${folder.owner} io-fence -" ]
        ) (lib.attrValues watched);

        systemd.services.io-fence = {
          description = "Close ports while the disk below them does not answer";
          documentation = [ "man:io-fence(1)" ];
          wantedBy = [ "multi-user.target" ];
          # As a firewall: before anybody from outside can be there. Of what comes after sysinit.target it needs nothing.
          wants = [ "network-pre.target" ];
          before = [
            "network-pre.target"
            "shutdown.target"
          ]
          ++ databases;
          # Before that, a folder is not yet on its disk, or not made. And its writes are over when the disk is unmounted.
          after = [
            "local-fs.target"
            "systemd-sysusers.service"
            "systemd-tmpfiles-setup.service"
          ];
          conflicts = [ "shutdown.target" ];
          unitConfig.DefaultDependencies = false;
          # One that restarts is back in a moment, and the kernel keeps the fence.
          stopIfChanged = false;
          startLimitIntervalSec = 0;
          serviceConfig = import ./hardening.nix // {
            Type = "notify";
            ExecStart = utils.escapeSystemdExecArgs [
              program
              "run"
              "--config"
              "${checked}"
            ];
            User = "io-fence";
            Group = "io-fence";
            # Its table in nftables, and the end of connections that are established.
            AmbientCapabilities = "CAP_NET_ADMIN";
            CapabilityBoundingSet = "CAP_NET_ADMIN";
            # It is held in memory, all of it; how much that may be is MemoryMax='s business. No capability is needed.
            LimitMEMLOCK = "infinity";
            # Its socket is open to who may ask, and what it knows outlives it, and no boot.
            RuntimeDirectory = "io-fence";
            RuntimeDirectoryMode = "0755";
            RuntimeDirectoryPreserve = true;
            # The databases wait for its first start, and not for long.
            TimeoutStartSec = "10s";
            # A thread that a disk holds can be killed by nobody. It is left behind, and the next one begins beside it: after four times this.
            TimeoutStopSec = "500ms";
            # Killed while a disk holds one of its threads, it is not gone for systemd: this is when another one begins.
            WatchdogSec = "5s";
            # Nothing writes its memory to a disk that stalls.
            WatchdogSignal = "SIGKILL";
            Restart = "always";
            RestartSec = "200ms";
            # A wrong command line or configuration does not get better by itself.
            RestartPreventExitStatus = "64 78";
            # When the machine is short of something, this is not what it should be short of.
            Nice = -10;
            # Its few writes go before those of a database that is busy, where the disk's scheduler knows of classes: a queue that is long is no stall.
            IOSchedulingClass = "realtime";
            OOMScoreAdjust = -900;
            # The folders that it writes to are the only ones that let it. With "strict" each of them would be a mount of this unit's: a disk
            # could then not be unmounted, and one that does not answer would keep the unit from starting.
            ProtectSystem = "full";
            # These make folders in /tmp (until systemd 253, PrivateDevices=, too) before each start: on a root disk that stalls there would be
            # none.
            PrivateTmp = false;
            PrivateDevices = false;
            DevicePolicy = "closed";
            InaccessiblePaths = [
              "-/tmp"
              "-/var/tmp"
            ];
            # The kernel's tables and its own socket; and a port only where it has figures.
            RestrictAddressFamilies = [
              "AF_UNIX"
              "AF_NETLINK"
            ]
            ++ lib.optionals fence.metrics.enable [
              "AF_INET"
              "AF_INET6"
            ];
            # Threads that a disk holds are counted here, too.
            TasksMax = 512;
          };
        };
      }
      (mkIf postgresql.enable {
        server.database.fence.folders.postgresql = {
          path = lib.mkDefault "${dirOf dataFolder}/io-fence";
          ports = lib.mkDefault [ postgresql.settings.port ];
          owner = mkIf madeByNixos (lib.mkDefault "postgres");
          through = mkIf madeByNixos (lib.mkDefault [ (dirOf dataFolder) ]);
        };
        # Its own from the first start on: what is another's there would be made postgres' by that start, our folder, too.
        systemd.tmpfiles.rules = lib.optional (
          madeByNixos && fence.folders.postgresql.enable
        ) "d ${dirOf dataFolder} :0750 postgres postgres -";
      })
      {
        server.database.fence.folders = lib.mapAttrs' (
          name: server:
          lib.nameValuePair (redisName name) {
            path = lib.mkDefault "/var/lib/${redisName name}/io-fence";
            ports = lib.mkDefault [ server.port ];
            owner = lib.mkDefault server.user;
            through = lib.mkDefault [ "/var/lib/${redisName name}" ];
          }
        ) redisServers;
        systemd.tmpfiles.rules = lib.mapAttrsToList (
          name: server: "d /var/lib/${redisName name} :0710 ${server.user} ${server.group} -"
        ) redisClosed;
        # With NixOS' 0700 no ACL of this folder has an effect. Redis' group gains nothing: its files are 0600.
        systemd.services = lib.mapAttrs' (
          name: _:
          lib.nameValuePair (redisName name) {
            serviceConfig.StateDirectoryMode = lib.mkForce "0710";
          }
        ) redisClosed;
      }
      (mkIf drains {
        security.polkit.enable = true;
        # To begin one of two units is all that it needs.
        security.polkit.extraConfig = ''
          polkit.addRule(function(action, subject) {
            if (action.id == "org.freedesktop.systemd1.manage-units" &&
                subject.user == "io-fence" &&
                ["${drainUnit}", "${undrainUnit}"].indexOf(action.lookup("unit")) >= 0 &&
                action.lookup("verb") == "start") {
              return polkit.Result.YES;
            }
          });
        '';
        systemd.services.io-fence-drain =
          told "Drain the fleet: ports of the databases are closed" undrainUnit
            {
              ExecStart = cfg.coordinator.commands.drain;
            };
        systemd.services.io-fence-undrain =
          told "Undrain the fleet: ports of the databases are open again" drainUnit
            {
              # Where a database is stopped meanwhile, the coordinator undrains when it is back. One that is still undraining, as it does for
              # minutes when a host is off, has been overtaken by the drain, and does not count.
              ExecCondition =
                let
                  systemctl = "${config.systemd.package}/bin/systemctl";
                in
                "${pkgs.runtimeShell} -c 'case \"$$(${systemctl} show -P ActiveState io-database-coordinator.service)\" in active|activating|reloading) ;; *) exit 1 ;; esac'";
              ExecStartPre = lib.optional (cfg.coordinator.commands.wait != "") cfg.coordinator.commands.wait;
              ExecStart = cfg.coordinator.commands.undrain;
              LoadCredential = cfg.coordinator.credentials;
            };
      })
    ]
  );
}
