# Stands in for the input `nixpkgs` where that cannot be reached:
#   nix flake check --override-input nixpkgs path:./checks/nix/stand-in/nixpkgs …
{
  description = "A stand-in for nixpkgs";

  outputs =
    _:
    let
      lib = import ./lib.nix;
    in
    {
      lib = lib // {
        nixosSystem = args: import ./nixos.nix args;
      };
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
        system: import ./pkgs.nix { inherit system; }
      );
    };
}
