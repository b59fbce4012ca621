{
  description = "Keeps everything that depends on a database in step with that database";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    # For the example hosts and the checks: the modules work without it, and with the sops-nix that a fleet has.
    sops-nix = {
      url = "github:Mic92/sops-nix";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      sops-nix,
    }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      eachSystem = f: lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});

      # The package, once, however many of the modules are imported.
      package =
        { lib, pkgs, ... }:
        {
          key = "io-guardian#package";
          config.server.database.package =
            lib.mkDefault
              self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        };
      # All modules; `parts` turn themselves on where they are needed.
      modules = parts: {
        _file = "io-guardian";
        key = "io-guardian#${toString parts}";
        imports = [
          ./modules
          package
        ];
        config.server.database = { inherit parts; };
      };
      hosts = import ./hosts {
        inherit lib sops-nix;
        inherit (self) nixosModules nixosConfigurations;
      };
    in
    {
      packages = eachSystem (pkgs: {
        default = pkgs.callPackage ./package.nix { };
      });
      overlays.default = final: _: { io-guardian = final.callPackage ./package.nix { }; };

      nixosModules = {
        default = modules [
          "guardian"
          "coordinator"
        ];
        guardian = modules [ "guardian" ];
        coordinator = modules [ "coordinator" ];
      };
      lib = import ./lib { inherit lib; };

      apps = eachSystem (pkgs: {
        demo = {
          type = "app";
          meta.description = "The whole story on this machine, with real databases";
          program = lib.getExe (
            pkgs.writeShellApplication {
              name = "io-guardian-demo";
              runtimeInputs = [
                pkgs.postgresql
                pkgs.redis
                self.packages.${pkgs.stdenv.hostPlatform.system}.default
              ];
              text = ''exec io-guardian demo "$@"'';
            }
          );
        };
      });

      devShells = eachSystem (pkgs: {
        default = pkgs.mkShell {
          packages = [
            pkgs.cargo
            pkgs.clippy
            pkgs.rustc
            pkgs.rustfmt
            pkgs.nixfmt
            pkgs.deadnix
            pkgs.just
            pkgs.etcd
            pkgs.postgresql
            pkgs.protobuf
            pkgs.redis
            pkgs.shellcheck
            pkgs.sops
          ];
        };
      });
      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);

      nixosConfigurations = lib.mapAttrs (
        _: modules:
        lib.nixosSystem {
          system = "x86_64-linux";
          inherit modules;
        }
      ) hosts;
      checks = eachSystem (
        pkgs:
        {
          package = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
        }
        // import ./checks/vm {
          inherit lib pkgs sops-nix;
          inherit (self) nixosModules;
        }
      );
      templates.default = {
        path = ./templates/fleet;
        description = "A primary with PostgreSQL and Redis, and a host whose service depends on them";
      };
    };
}
