{
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    sops-nix.url = "github:Mic92/sops-nix";
    sops-nix.inputs.nixpkgs.follows = "nixpkgs";
    # Where you got this template from, for example "github:…/io-guardian" or "git+https://…".
    io-guardian.url = "io-guardian";
    io-guardian.inputs.nixpkgs.follows = "nixpkgs";
    io-guardian.inputs.sops-nix.follows = "sops-nix";
  };
  outputs =
    {
      self,
      nixpkgs,
      sops-nix,
      io-guardian,
    }:
    {
      nixosConfigurations = nixpkgs.lib.genAttrs [ "db" "app" ] (
        name:
        nixpkgs.lib.nixosSystem {
          modules = [
            sops-nix.nixosModules.sops
            io-guardian.nixosModules.default
            (./hosts + "/${name}.nix")
            {
              networking.hostName = name;
              nixpkgs.hostPlatform = "x86_64-linux";
              server.ioPrimaryHost = "db";
              server.network.subnets = [ "192.168.1.0/24" ];
              server.database.coordinator.fleet = self.nixosConfigurations;
              sops.defaultSopsFile = ./secrets.yaml;
              sops.age.keyFile = "/var/lib/sops-nix/key.txt";
            }
          ];
        }
      );
    };
}
