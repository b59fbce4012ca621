# Stands in for the input `sops-nix`. Its options are in ../nixpkgs/options.nix.
{
  description = "A stand-in for sops-nix";

  outputs = _: {
    nixosModules = {
      sops = { };
      default = { };
    };
  };
}
