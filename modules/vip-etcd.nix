# The etcd that keeps a pool of addresses, on hosts of the fleet itself: one list of its members is all that there is to say.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  fleet = import ../lib { inherit lib; };
  inherit (ours) inWords milliseconds;
  cfg = config.server.vip;
  etcd = cfg.etcd;

  scheme = if etcd.certFile != null then "https" else "http";
  url = address: port: "${scheme}://${fleet.endpoint address port}";
  # Where it is not a member it is refused (vip-assertions.nix).
  own = etcd.members.${etcd.name} or "127.0.0.1";
in
{
  options.server.vip.etcd = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether this host is a member of the etcd that keeps the pool. It must be one of `members`; the others have the same list. With three of
        them, one may be away. A host with addresses need not be a member: it is given `store.endpoints`. And a member need not have addresses
        (`server.vip.enable`).
      '';
    };
    members = mkOption {
      type = types.attrsOf ours.address;
      default = { };
      example = lib.literalExpression ''
        {
          a = "192.168.1.21";
          b = "192.168.1.22";
          c = "192.168.1.23";
        }
      '';
      description = "All members, by their names, with the addresses at which they reach each other. Never an address of the pool.";
    };
    name = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      description = "This host's name among them.";
    };
    clients = mkOption {
      type = types.listOf ours.subnet;
      default = [ ];
      example = [ "192.168.1.0/24" ];
      description = ''
        Who else may use it: hosts with addresses that are no members, and whoever runs `io-vip` or `etcdctl` elsewhere. Without certificates whoever
        reaches port 2379 decides where the addresses are.
      '';
    };
    openFirewall = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the firewall lets the other members in on ports 2379 and 2380, and `clients` on 2379.";
    };
    electionTimeout = mkOption {
      type = ours.duration;
      default = "1s";
      description = ''
        How long a leader may be silent before another one is elected, which takes up to twice this; the same on all members. Shorter is for a short
        `settings.ttl` (docs/TIMING.md), and for disks and networks that never take so long.
      '';
    };
    heartbeatInterval = mkOption {
      type = ours.duration;
      default = inWords (milliseconds etcd.electionTimeout / 10);
      defaultText = lib.literalMD "a tenth of `electionTimeout`";
      description = "How often a leader says that it is there; the same on all members.";
    };
    caFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/etc/etcd/ca.pem";
      description = ''
        File with the certificates of those who vouch for members and clients (PEM). With it, `certFile` and `keyFile`, nobody is let in without a
        certificate, and nothing crosses the network in clear.
      '';
    };
    certFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/etc/etcd/cert.pem";
      description = "File with this host's certificate, for its address in `members` and for 127.0.0.1, as server and as client (PEM).";
    };
    keyFile = mkOption {
      type = types.nullOr ours.secretPath;
      default = null;
      example = "/run/secrets/etcd-key";
      description = "File with its key (PEM). The user `etcd` must be able to read it.";
    };
  };

  config = mkIf etcd.enable {
    server.vip.store = {
      endpoints = lib.mkDefault (map (address: url address 2379) (lib.attrValues etcd.members));
      caFile = mkIf (etcd.caFile != null) (lib.mkDefault etcd.caFile);
      certFile = mkIf (etcd.certFile != null) (lib.mkDefault etcd.certFile);
      keyFile = mkIf (etcd.keyFile != null) (lib.mkDefault etcd.keyFile);
    };

    services.etcd = {
      enable = true;
      name = lib.mkDefault etcd.name;
      listenPeerUrls = lib.mkDefault [ (url own 2380) ];
      # The first is for commands by hand.
      listenClientUrls = lib.mkDefault [
        (url "127.0.0.1" 2379)
        (url own 2379)
      ];
      initialAdvertisePeerUrls = lib.mkDefault [ (url own 2380) ];
      advertiseClientUrls = lib.mkDefault [ (url own 2379) ];
      initialCluster = lib.mkDefault (
        lib.mapAttrsToList (name: address: "${name}=${url address 2380}") etcd.members
      );
      initialClusterToken = lib.mkDefault "io-vip";
      extraConf = lib.mapAttrs (_: lib.mkDefault) {
        ELECTION_TIMEOUT = toString (milliseconds etcd.electionTimeout);
        HEARTBEAT_INTERVAL = toString (milliseconds etcd.heartbeatInterval);
        # Each sign of life is a revision, of 100 bytes. etcd keeps all of them unless it is told otherwise, and takes no more writes when its 2 GiB are
        # full: then all addresses are gone. Three nodes with one in a second need three months for it.
        AUTO_COMPACTION_MODE = "periodic";
        AUTO_COMPACTION_RETENTION = "1h";
      };
    }
    // lib.optionalAttrs (etcd.certFile != null) {
      trustedCaFile = lib.mkDefault etcd.caFile;
      certFile = lib.mkDefault etcd.certFile;
      keyFile = lib.mkDefault etcd.keyFile;
      clientCertAuth = lib.mkDefault true;
      peerClientCertAuth = lib.mkDefault true;
    };
    # NixOS waits for 30 s, in which another member's end would be the end of all. Not so short that a member that cannot start is given up
    # for having tried too often.
    systemd.services.etcd.serviceConfig.RestartSec = lib.mkOverride 90 "3s";
  };
}
