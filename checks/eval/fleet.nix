# What cases start from: our modules on a host, and the hosts of the example fleet.
{ lib }:
let
  evaluate = modules: { inherit ((import ../nix/evaluate.nix { inherit modules; })) config; };
  ours =
    { pkgs, ... }:
    {
      imports = [ ../../modules ];
      server.database.package = pkgs.io-guardian;
    };
in
rec {
  # A host of a fleet, and what it says beside that.
  host = name: settings: [
    ours
    {
      networking.hostName = name;
      server.ioPrimaryHost = lib.mkDefault "nixio";
      server.network.subnets = lib.mkDefault [ "192.168.1.0/24" ];
      sops.age.keyFile = "/var/lib/sops-nix/key.txt";
      sops.defaultSopsFile = ../../hosts/server/secrets.yaml;
    }
    settings
  ];
  # A service that lives as long as it is let.
  sleep.serviceConfig.ExecStart = "/bin/sleep infinity";

  # Hosts that know each other, as nixosConfigurations do: { name = settings; }.
  fleet =
    settings:
    let
      hosts = lib.mapAttrs (
        name: s:
        host name s
        ++ lib.optional (name == "nixio") {
          server.database.coordinator.fleet = lib.mapAttrs (_: evaluate) hosts;
        }
      ) settings;
    in
    hosts;
  databases = {
    services.postgresql.enable = true;
    services.redis.servers."".enable = true;
  };

  examples = import ../../hosts {
    inherit lib;
    sops-nix.nixosModules.sops = { };
    nixosModules.default = ours;
    nixosConfigurations = lib.mapAttrs (_: evaluate) examples;
  };
}
