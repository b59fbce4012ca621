# The example fleet, a list of modules for each host. The checks use the same files.
{
  lib,
  nixosConfigurations,
  nixosModules,
  sops-nix,
}:
let
  host = name: file: [
    sops-nix.nixosModules.sops
    nixosModules.default
    ./common.nix
    ./machine.nix
    file
    { networking.hostName = name; }
    (lib.optionalAttrs (name == "nixio") {
      server.database.coordinator.fleet = nixosConfigurations;
    })
  ];
in
lib.genAttrs [ "nixio" "app1" "app2" ] (name: host name (./. + "/${name}.nix"))
# All of a kind.
// lib.genAttrs [ "edge1" "edge2" "edge3" ] (name: host name ./edge.nix)
