# Who may come in: the fleet's own networks, and nobody else.
{ config, lib, ... }:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  cfg = config.server.database;
  subnets = config.server.network.subnets;
  v6 = lib.filter (lib.hasInfix ":") subnets;
  v4 = lib.subtractLists v6 subnets;
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
    ++ lib.optionals cfg.provision.openFirewall cfg.provision.ports;

  iptables =
    command: networks:
    lib.concatMapStrings (
      network:
      lib.concatMapStrings (port: ''
        ${command} -A nixos-fw -p tcp -s ${network} --dport ${toString port} -j nixos-fw-accept
      '') ports
    ) networks;
  nftables =
    family: networks:
    lib.optionalString (networks != [ ]) ''
      ${family} saddr { ${lib.concatStringsSep ", " networks} } tcp dport { ${
        lib.concatMapStringsSep ", " toString ports
      } } accept
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

  config = mkIf (ports != [ ] && subnets != [ ]) {
    networking.firewall = {
      extraInputRules = mkIf (config.networking.firewall.backend == "nftables") (
        nftables "ip" v4 + nftables "ip6" v6
      );
      # The chain is emptied before these run again: nothing piles up.
      extraCommands = mkIf (config.networking.firewall.backend == "iptables") (
        iptables "iptables" v4
        # Without IPv6 there is no such chain, and a line that fails ends the script.
        + lib.optionalString config.networking.enableIPv6 (iptables "ip6tables" v6)
      );
    };
    warnings =
      lib.optional
        (
          !lib.elem config.networking.firewall.backend [
            "nftables"
            "iptables"
          ]
        )
        "networking.firewall.backend of ${config.networking.hostName} is ${config.networking.firewall.backend}, for which we have no rules: let ${lib.concatStringsSep ", " subnets} in on TCP port ${
          lib.concatMapStringsSep ", " toString ports
        } yourself, and set server.database.guardian.openFirewall = false;";
  };
}
