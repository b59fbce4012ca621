# The example fleet, a list of modules for each host. The checks use the same files.
{
  lib,
  nixosConfigurations,
  nixosModules,
  sops-nix,
}:
lib.genAttrs [ "nixio" "app1" "app2" ] (name: [
  sops-nix.nixosModules.sops
  nixosModules.default
  ./common.nix
  ./machine.nix
  (./. + "/${name}.nix")
  { networking.hostName = name; }
  (lib.optionalAttrs (name == "nixio") {
    server.database.coordinator.fleet = nixosConfigurations;
  })
])
