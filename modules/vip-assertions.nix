# Of addresses, what cannot work is refused when it is evaluated: the rule, the values, the line to change. What works badly warns.
{ config, lib, ... }:
let
  ours = import ./types.nix { inherit lib; };
  inherit (ours) inWords milliseconds;
  host = config.networking.hostName;
  cfg = config.server.vip;
  inherit (cfg) etcd settings store;
  show = names: lib.concatStringsSep ", " names;

  ttl = milliseconds settings.ttl;
  margin = milliseconds settings.margin;
  interval = milliseconds settings.interval;
  leastMargin = lib.max 150 ((ttl + 9) / 10);
  isTtl = ttl >= 2000 && ttl <= 600 * 1000;

  interface = if cfg.interface == null then "" else cfg.interface;
  label = "${interface}:${settings.label}";

  sealed = lib.filter (lib.hasPrefix "https://") store.endpoints;
  plain = lib.filter (lib.hasPrefix "http://") store.endpoints;
  storeFiles = lib.attrNames (
    lib.filterAttrs (_: file: file != null) { inherit (store) caFile certFile keyFile; }
  );
  etcdFiles = lib.attrNames (
    lib.filterAttrs (_: file: file != null) { inherit (etcd) caFile certFile keyFile; }
  );
  count = lib.length (lib.attrNames etcd.members);

  # What would lie in the store, where everybody can read it: the key itself, or a URL with a password in it.
  given = lib.filter (key: (settings.${key} or null) != null) [
    "etcd-password"
    "http-password"
    "postgres-password"
  ];
  matches = pattern: key: builtins.match pattern (toString (settings.${key} or "")) != null;
  inUrl =
    lib.filter (matches "[^/]*//[^/@]*:[^/@]*@.*") [ "http-url" ]
    # libpq's words for it, and a password with a slash in it.
    ++ lib.filter (key: matches "[^/]*//[^@?]*:[^@?]*@.*" key || matches ".*password *=.*" key) [
      "postgres-conn-url"
    ];

  # Of what the daemon writes.
  elsewhere =
    lib.filter (key: settings ? ${key} && !lib.hasPrefix "/run/io-vip/" (toString settings.${key}))
      [
        "socket"
        "state"
      ];

  # What is held lasts so long after a sign of life. The last one may be an interval old when etcd's leader goes, one more is sent in vain and waited
  # for, and a new leader takes up to two timeouts.
  lasts = ttl - margin;
  patience = lib.max 200 interval;
  election = milliseconds etcd.electionTimeout;
  heartbeat = milliseconds etcd.heartbeatInterval;
  gap = interval + patience + 2 * election;
  electionAtMost = (lasts - interval - patience) / 2;

  # Of a member, whether it has addresses or not.
  etcdAssertions = [
    {
      assertion = etcd.members ? ${etcd.name};
      message = "server.vip.etcd.enable is set on ${host}, and ${etcd.name} is not one of server.vip.etcd.members (${
        if count == 0 then "there are none" else show (lib.attrNames etcd.members)
      }): add it with its address, or set server.vip.etcd.name.";
    }
    {
      assertion = etcdFiles == [ ] || lib.length etcdFiles == 3;
      message = "server.vip.etcd on ${host} has ${show etcdFiles} alone: set caFile, certFile and keyFile, or none of them.";
    }
    {
      assertion = election >= 5 * heartbeat;
      message = "etcd does not start with less than five heartbeats in an election timeout: server.vip.etcd.electionTimeout (${etcd.electionTimeout}) on ${host} must be at least five times heartbeatInterval (${etcd.heartbeatInterval}). Leave heartbeatInterval out.";
    }
    {
      assertion = election >= 10 && election <= 50 * 1000;
      message = "server.vip.etcd.electionTimeout (${etcd.electionTimeout}) on ${host} must be from 10ms to 50s: etcd does not start with another one.";
    }
  ];
in
{
  config.assertions =
    lib.optionals cfg.enable (
      [
        {
          assertion = cfg.interface != null;
          message = "server.vip.interface is not set on ${host}: name the interface that the addresses are put on, for example server.vip.interface = \"eth0\";";
        }
        {
          assertion = lib.stringLength label <= 15;
          message = "The label ${label} on ${host} has ${toString (lib.stringLength label)} characters, and the kernel takes 15: shorten server.vip.settings.label (${settings.label}).";
        }
        {
          assertion = isTtl;
          message = "server.vip.settings.ttl (${settings.ttl}) on ${host} must be from 2s to 10m: etcd has no shorter leases, and longer ones make nobody safer.";
        }
        {
          assertion = !isTtl || margin >= leastMargin;
          message = "A node must give up its addresses before others take them, however their clocks run: server.vip.settings.margin (${settings.margin}) on ${host} must be a tenth of ttl (${settings.ttl}) and 150ms at least. Raise it to ${inWords leastMargin}, or leave it out.";
        }
        {
          assertion = interval >= 50;
          message = "server.vip.settings.interval (${settings.interval}) on ${host} must be 50ms at least: each is a write to etcd's disks.";
        }
        {
          assertion = !isTtl || interval * 3 + margin <= ttl;
          message = "A sign of life may be lost, and the next one must be in time: three times server.vip.settings.interval (${settings.interval}) and margin (${settings.margin}) on ${host} must fit into ttl (${settings.ttl}). Lower interval to ${
            inWords (lib.max 50 ((ttl - margin) / 3))
          }, or raise ttl to ${inWords (interval * 3 + margin)} on all nodes.";
        }
        {
          assertion = settings.checker-type != null;
          message = "Nothing says on ${host} when it is healthy: set server.vip.settings.checker-type to \"http\", \"postgres\", \"redis\", \"tcp\" or \"command\"; or to \"none\", which takes a host that runs for healthy.";
        }
        {
          assertion = store.endpoints != [ ];
          message = "Nothing keeps the pool for ${host}: name etcd's members with server.vip.store.endpoints, or set server.vip.etcd.enable = true; and server.vip.etcd.members.";
        }
        {
          assertion = sealed == [ ] || plain == [ ];
          message = "server.vip.store.endpoints on ${host} mixes http:// (${lib.head plain}) and https:// (${lib.head sealed}): write all of them with the same.";
        }
        {
          assertion = plain == [ ] || storeFiles == [ ];
          message = "server.vip.store.endpoints on ${host} says ${lib.head plain}, and server.vip.store has ${show storeFiles} for TLS: write https://, or take ${
            if lib.length storeFiles == 1 then "it" else "them"
          } out.";
        }
        {
          assertion = sealed == [ ] || store.caFile != null;
          message = "server.vip.store.endpoints on ${host} says ${lib.head sealed}, and nothing says who vouches for it: set server.vip.store.caFile.";
        }
        {
          assertion = (store.certFile == null) == (store.keyFile == null);
          message = "server.vip.store on ${host} has ${
            if store.certFile == null then "keyFile without certFile" else "certFile without keyFile"
          }: set both, or neither.";
        }
        {
          assertion = (store.user == null) == (store.passwordFile == null);
          message = "server.vip.store on ${host} has ${
            if store.user == null then "passwordFile without user" else "user without passwordFile"
          }: set both, or neither.";
        }
        {
          assertion = elsewhere == [ ];
          message = "${
            show (map (key: "server.vip.settings.${key} (${settings.${key}})") elsewhere)
          } on ${host} is not in /run/io-vip, and that is all that the unit may write to: leave it out, or put it there.";
        }
      ]
      ++ map (key: {
        assertion = false;
        message = "server.vip.settings.${key} on ${host} would lie in the Nix store, where everybody can read it: put it into a file, and name that with ${
          if key == "etcd-password" then
            "server.vip.store.passwordFile"
          else
            "server.vip.settings.${key}-file"
        }.";
      }) given
      ++ map (key: {
        assertion = false;
        message = "server.vip.settings.${key} on ${host} has a password in it, and would lie in the Nix store, where everybody can read it: put it into a file, and name that with server.vip.settings.${
          if key == "http-url" then "http" else "postgres"
        }-password-file.";
      }) inUrl
    )
    ++ lib.optionals etcd.enable etcdAssertions;

  config.warnings =
    lib.optional (cfg.enable && etcd.enable && isTtl && gap > lasts)
      "When etcd's leader goes, no sign of life of ${host} gets through for up to ${inWords gap} (twice server.vip.etcd.electionTimeout, ${etcd.electionTimeout}, and two of server.vip.settings.interval, ${settings.interval}), and what it holds lasts for ${inWords lasts} (ttl less margin): all nodes may drop all addresses each time. Raise server.vip.settings.ttl on all nodes${
        lib.optionalString (
          electionAtMost > 0
        ) ", or lower electionTimeout to ${inWords electionAtMost} on all members"
      }."
    ++
      lib.optional (etcd.enable && count == 1)
        "server.vip.etcd.members has ${etcd.name} alone: when it is away, so are all addresses. With three of them, one may be away."
    ++
      lib.optional (etcd.enable && count > 1 && lib.mod count 2 == 0)
        "server.vip.etcd.members has ${toString count} members, of which no more may be away than of ${toString (count - 1)}, and there is one more to fail: add one, or take one out.";
}
