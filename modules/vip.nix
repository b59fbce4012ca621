# On hosts that share a pool of addresses: each holds a fair share of it while it is healthy, and no address is ever on two of them.
#
# It is `server.vip`, and not `server.database.vip`: whatever is healthy may hold addresses, a load balancer as well as a database, on hosts
# that have no primary. "VIP" is what keepalived, vip-manager and Patroni's users call them.
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
  inherit (ours) inWords milliseconds;
  cfg = config.server.vip;
  program = lib.getExe' cfg.package "io-vip";
  toml = pkgs.formats.toml { };
  inherit (config.networking) hostName;

  ttl = milliseconds cfg.settings.ttl;
  # All that is said, and nothing that is not: TOML has no null.
  said = lib.filterAttrs (_: value: value != null) cfg.settings;
  written = toml.generate "io-vip.toml" said;
  # A configuration that io-vip would refuse is refused here, and never reaches a host. What is in files that are on the host alone, it sees there.
  checked =
    if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
      pkgs.runCommand "io-vip-checked.toml" { } ''
        ${program} run --check-config --config ${written}
        cp ${written} $out
      ''
    else
      written;

  # What the daemon reads, and its user may not: systemd reads it for the unit. In the file they have their own paths, which is what root
  # needs for commands by hand.
  files = lib.filterAttrs (key: _: lib.hasSuffix "-file" key) said;

  secretFile =
    what:
    mkOption {
      type = types.nullOr ours.secretPath;
      default = null;
      example = "/run/secrets/vip";
      description = "File with ${what}. Only root need be able to read it.";
    };
  publicFile =
    what:
    mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/etc/etcd/ca.pem";
      description = "File with ${what} (PEM).";
    };

  settings =
    { config, ... }:
    let
      # As io-vip has them itself; written out, so that they are seen, and can be held to each other.
      ttl = milliseconds config.ttl;
      margin = milliseconds config.margin;
    in
    {
      freeformType = toml.type;
      options = {
        nodename = mkOption {
          type = types.strMatching "[A-Za-z0-9._-]{1,128}";
          default = hostName;
          defaultText = lib.literalExpression "config.networking.hostName";
          description = "This node's name in the store. No two nodes may have the same.";
        };
        ttl = mkOption {
          type = ours.duration;
          default = "10s";
          example = "2s";
          description = ''
            How long a node that is not heard of is waited for before others take its addresses; the same on all nodes, from 2 s to 10 minutes.
          '';
        };
        margin = mkOption {
          type = ours.duration;
          default = inWords (lib.max 150 ((ttl + 9) / 10));
          defaultText = lib.literalMD "a tenth of `ttl`, at least 150 ms";
          description = ''
            How long before the end of that a node gives up its own. It pays for clocks that run at different rates, and for the time that giving up
            takes (docs/TIMING.md): not less than the default.
          '';
        };
        interval = mkOption {
          type = ours.duration;
          default = inWords (lib.max 50 (lib.min 1000 ((ttl - margin) / 3)));
          defaultText = lib.literalMD "1 s, or a third of `ttl` less `margin` where that is less";
          description = "Between two signs of life, and between two checks. Three of them and `margin` must fit into `ttl`.";
        };
        label = mkOption {
          type = types.strMatching "[A-Za-z0-9_-]+";
          default = "vip";
          description = ''
            What `ip address` shows behind the interface's name for an IPv4 address of ours: `eth0:vip`. With the name and the colon at most 15
            characters.
          '';
        };
        on-stop = mkOption {
          type = types.enum [
            "release"
            "keep"
          ];
          default = "release";
          description = ''
            What becomes of the addresses when the daemon is told to end. `release`: other nodes take them at once. `keep`: they stay for what is left of
            the ttl, so that a restart, or a switch that restarts it, moves none; at a shutdown others wait for them.
          '';
        };
        neighbours = mkOption {
          type = types.enum [
            "ask"
            "trust"
          ];
          default = "ask";
          description = ''
            Whether the neighbours are asked for an address before it is held for the first time since it came into the pool (`ask`), so that nobody takes
            what a machine outside of the pool has. `trust` takes it without: where somebody answers for every address, as a router with proxy ARP does, all
            would look taken.
          '';
        };
        checker-type = mkOption {
          type = types.nullOr (
            types.enum [
              "http"
              "postgres"
              "redis"
              "tcp"
              "command"
              "none"
            ]
          );
          default = null;
          example = "http";
          description = ''
            How it is found out whether this node is healthy. `none`: a node that runs is. What each asks for is in its own keys: `http-url`,
            `postgres-conn-url`, `redis-address`, `tcp-address`, `command`.
          '';
        };
        http-password-file = secretFile "the password for `http-url` (basic authentication)";
        http-key-file = secretFile "the key of `http-cert-file` (PEM)";
        postgres-password-file = secretFile "the password for `postgres-conn-url`";
        postgres-key-file = secretFile "the key of `postgres-cert-file` (PEM)";
        redis-password-file = secretFile "the password of Redis";
        etcd-password-file = secretFile "the password of `etcd-user`; `store.passwordFile`" // {
          internal = true;
        };
        etcd-key-file = secretFile "the key of `etcd-cert-file` (PEM); `store.keyFile`" // {
          internal = true;
        };
      };
    };
in
{
  options.server.vip = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether this host takes part in a pool of addresses (docs/VIP.md): all of them are always on some healthy node, shared out evenly, and
        none is ever on two. `io-vip add ADDRESS` puts one into the pool.
      '';
    };
    package = mkOption {
      type = types.package;
      default = config.server.database.package;
      defaultText = lib.literalExpression "config.server.database.package";
      description = "The package that has io-vip.";
    };
    interface = mkOption {
      type = types.nullOr (types.strMatching "[^/:[:space:]]{1,15}");
      default = null;
      example = "eth0";
      description = "Interface that the addresses are put on. Only what io-vip has put there is ever changed.";
    };
    store = {
      endpoints = mkOption {
        type = types.listOf types.str;
        default = [ ];
        defaultText = lib.literalMD "the members of `etcd.members`, with `etcd.enable`";
        example = [
          "http://192.168.1.21:2379"
          "http://192.168.1.22:2379"
          "http://192.168.1.23:2379"
        ];
        description = "Members of the etcd that keeps the pool: best all of them. `https://` with `caFile`.";
      };
      user = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "User of etcd, where it asks for one. It may read and write below `/<dcs-namespace>/<dcs-clustername>/`.";
      };
      passwordFile = secretFile "the password of `user`";
      caFile = publicFile "the certificates of those who vouch for etcd";
      certFile = publicFile "our own certificate for etcd, where it asks for one";
      keyFile = secretFile "the key of `certFile` (PEM)";
    };
    metrics = ours.metrics {
      of = "io-vip";
      port = 9880;
    };
    settings = mkOption {
      type = types.submodule settings;
      default = { };
      example = lib.literalExpression ''
        {
          checker-type = "http";
          http-url = "http://127.0.0.1:8008/primary";
          dcs-clustername = "web";
        }
      '';
      description = ''
        io-vip's configuration file, with the keys of yaim: see `io-vip run --help`, which has more than are named here. It is checked when it is built.
        Whoever can read the Nix store can read it: passwords are in files.
      '';
    };
  };

  config = mkIf cfg.enable {
    server.vip.settings = lib.mapAttrs (_: lib.mkDefault) (
      {
        dcs-endpoints = cfg.store.endpoints;
      }
      // lib.filterAttrs (_: value: value != null) {
        inherit (cfg) interface;
        etcd-user = cfg.store.user;
        etcd-password-file = cfg.store.passwordFile;
        etcd-ca-file = cfg.store.caFile;
        etcd-cert-file = cfg.store.certFile;
        etcd-key-file = cfg.store.keyFile;
      }
      // lib.optionalAttrs cfg.metrics.enable {
        metrics = fleet.endpoint cfg.metrics.address cfg.metrics.port;
      }
    );

    # The program, for commands by hand, its manual page, and which pool they are about.
    environment.systemPackages = [ cfg.package ];
    environment.etc."io-vip.toml".source = checked;
    environment.sessionVariables.YAIM_CONFIG = "/etc/io-vip.toml";

    users.users.io-vip = {
      isSystemUser = true;
      group = "io-vip";
      description = "io-vip";
    };
    users.groups.io-vip = { };

    systemd.services.io-vip = {
      description = "Hold a fair share of a pool of addresses while this host is healthy";
      documentation = [ "man:io-vip(1)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      # Turned round at a stop: what it gives up, others learn from the store, over the network.
      after = [
        "network-online.target"
        "nss-lookup.target"
      ]
      ++ lib.optional config.services.etcd.enable "etcd.service";
      # One that restarts is back in a moment, and the kernel keeps time meanwhile.
      stopIfChanged = false;
      startLimitIntervalSec = 0;
      serviceConfig = import ./hardening.nix // {
        Type = "notify";
        ExecStart =
          utils.escapeSystemdExecArgs [
            program
            "run"
            "--config"
            "${checked}"
          ]
          # %d is systemd's: it must not be escaped.
          + lib.concatMapStrings (key: " --${key} %d/${key}") (lib.attrNames files);
        LoadCredential = lib.mapAttrsToList (key: path: "${key}:${path}") files;
        User = "io-vip";
        Group = "io-vip";
        # Addresses, and the tables of nftables that end them on time; and telling the neighbours, which is a packet that no socket but a raw one sends.
        AmbientCapabilities = "CAP_NET_ADMIN CAP_NET_RAW";
        CapabilityBoundingSet = "CAP_NET_ADMIN CAP_NET_RAW";
        # Its socket is open to who may ask, and its lease outlives it, and no boot: the next one goes on with it.
        RuntimeDirectory = "io-vip";
        RuntimeDirectoryMode = "0755";
        RuntimeDirectoryPreserve = true;
        # SIGTERM is for it alone: a check that is ended would say that this host is not healthy.
        KillMode = "mixed";
        # It gives up all and says so in the store. With a store that is away that is over when what it holds ends by itself: the ttl less the
        # margin after its last sign of life. Killed before, it leaves no address behind for longer; others only wait for the whole ttl.
        TimeoutStopSec = "${toString ((ttl + 999) / 1000 + 2)}s";
        # One that hangs has no signs of life any more. Another one goes on with its lease: in time, from a ttl of 5 s on (docs/TIMING.md).
        WatchdogSec = inWords (lib.max 2000 (lib.min 5000 (ttl / 3)));
        # Not SIGABRT: to write its memory to a disk takes longer than there is.
        WatchdogSignal = "SIGKILL";
        Restart = "always";
        RestartSec = "200ms";
        # A wrong command line or configuration does not get better by itself.
        RestartPreventExitStatus = "64 78";
        # A sign of life that is late is an address that moves: when the machine is short of something, this is not what it should be short of.
        Nice = -10;
        OOMScoreAdjust = -900;
        # /proc/sys has the boot's id, by which a lease of before is known, and whether addresses of a network stay when its first one goes.
        ProcSubset = "all";
        # It has a namespace of its own for what is read-only there; nothing of it gets out.
        PrivateMounts = true;
        # The kernel's tables and addresses, the packets that tell the neighbours; etcd, the check, and figures.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_NETLINK"
          "AF_PACKET"
          "AF_INET"
          "AF_INET6"
        ];
      };
    };
  };
}
