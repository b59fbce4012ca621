# Who may come in: the fleet's own networks, and nobody else; and to an etcd of ours those alone who are named for it.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  cfg = config.server.database;
  inherit (config.server) vip;
  subnets = config.server.network.subnets;

  # Ports, who may come in on them, and how to have it done by somebody else.
  openings = lib.filter (opening: opening.ports != [ ] && opening.networks != [ ]) [
    {
      networks = subnets;
      ports =
        lib.optional (cfg.guardian.enable && cfg.guardian.openFirewall) cfg.guardian.port
        ++ lib.optional (
          cfg.guardian.enable && cfg.guardian.metrics.enable && cfg.guardian.metrics.openFirewall
        ) cfg.guardian.metrics.port
        ++ lib.optional (
          cfg.coordinator.serve.enable && cfg.coordinator.serve.openFirewall
        ) cfg.coordinator.serve.port
        ++ lib.optional (
          cfg.fence.enable && cfg.fence.metrics.enable && cfg.fence.metrics.openFirewall
        ) cfg.fence.metrics.port
        ++ lib.optional (vip.enable && vip.metrics.enable && vip.metrics.openFirewall) vip.metrics.port
        ++ lib.optionals cfg.provision.openFirewall cfg.provision.ports;
      instead = "server.database.guardian.openFirewall = false;";
    }
    {
      networks = members;
      ports = lib.optionals opensEtcd [
        2379
        2380
      ];
      instead = "server.vip.etcd.openFirewall = false;";
    }
    {
      networks = lib.subtractLists members (lib.unique vip.etcd.clients);
      ports = lib.optional opensEtcd 2379;
      instead = "server.vip.etcd.openFirewall = false;";
    }
  ];
  opensEtcd = vip.etcd.enable && vip.etcd.openFirewall;
  members = lib.attrValues (removeAttrs vip.etcd.members [ vip.etcd.name ]);

  isV6 = lib.hasInfix ":";
  v6 = lib.filter isV6;
  v4 = lib.filter (network: !isV6 network);
  inWords = lib.concatStringsSep ", ";
  portsOf = opening: lib.concatMapStringsSep ", " toString opening.ports;

  iptables =
    command: which: opening:
    lib.concatMapStrings (
      network:
      lib.concatMapStrings (port: ''
        ${command} -A nixos-fw -p tcp -s ${network} --dport ${toString port} -j nixos-fw-accept
      '') opening.ports
    ) (which opening.networks);
  nftables =
    family: which: opening:
    lib.optionalString (which opening.networks != [ ]) ''
      ${family} saddr { ${inWords (which opening.networks)} } tcp dport { ${portsOf opening} } accept
    '';
in
{
  options.server = {
    network.subnets = mkOption {
      type = types.listOf ours.subnet;
      default = [ ];
      example = [
        "192.168.1.0/24"
        "fd00::/8"
      ];
      description = "The fleet's networks: only from there are our ports open.";
    };
    database.guardian.openFirewall = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the firewall lets `server.network.subnets` in on the guardian's port.";
    };
  };

  config = mkIf (openings != [ ]) {
    networking.firewall = {
      extraInputRules = mkIf (config.networking.firewall.backend == "nftables") (
        lib.concatMapStrings (opening: nftables "ip" v4 opening + nftables "ip6" v6 opening) openings
      );
      # The chain is emptied before these run again: nothing piles up.
      extraCommands = mkIf (config.networking.firewall.backend == "iptables") (
        lib.concatMapStrings (
          opening:
          iptables "iptables" v4 opening
          # Without IPv6 there is no such chain, and a line that fails ends the script.
          + lib.optionalString config.networking.enableIPv6 (iptables "ip6tables" v6 opening)
        ) openings
      );
    };
    warnings =
      lib.optionals
        (
          !lib.elem config.networking.firewall.backend [
            "nftables"
            "iptables"
          ]
        )
        (
          map (
            opening:
            "networking.firewall.backend of ${config.networking.hostName} is ${config.networking.firewall.backend}, for which we have no rules: let ${inWords opening.networks} in on TCP port ${portsOf opening} yourself, and set ${opening.instead}"
          ) openings
        );
  };
}
