# The scenarios on virtual machines, one test for each file of ../scenarios: `nix build .#checks.x86_64-linux.wrong_key -L`,
# or with a prompt: `nix run .#checks.x86_64-linux.wrong_key.driverInteractive`.
#
# The machines are the example hosts, with what a test's network and a throw-away key need.
{
  lib,
  pkgs,
  sops-nix,
  nixosModules,
}:
let
  ours =
    { config, ... }:
    {
      imports = [
        sops-nix.nixosModules.sops
        nixosModules.default
        ../../hosts/common.nix
      ];
      # 192.168.1.0/24 is the fleet's already.
      server.network.subnets = [ "2001:db8:1::/64" ];

      # The key lies on the machine before its secrets are decrypted, and not in the store: sops-nix refuses that.
      system.activationScripts = lib.mkMerge [
        {
          ageKey.text = ''
            install -D -m 0400 ${../../hosts/server/test-age-key.txt} ${config.sops.age.keyFile}
          '';
        }
        (lib.mkIf (!config.sops.useSystemdActivation) { setupSecrets.deps = [ "ageKey" ]; })
      ];
    };

  nodes = {
    nixio =
      { nodes, ... }:
      {
        imports = [
          ours
          ../../hosts/nixio.nix
        ];
        server.database.coordinator.fleet = lib.mapAttrs (_: config: { inherit config; }) nodes;
      };
    app1.imports = [
      ours
      ../../hosts/app1.nix
    ];
    app2.imports = [
      ours
      ../../hosts/app2.nix
    ];
  };

  scenarios = lib.filter (lib.hasSuffix ".py") (
    lib.attrNames (lib.filterAttrs (_: kind: kind == "regular") (builtins.readDir ../scenarios))
  );
  test =
    file:
    let
      name = lib.removeSuffix ".py" file;
    in
    lib.nameValuePair name (
      pkgs.testers.runNixOSTest {
        inherit name nodes;
        testScript =
          builtins.readFile ../scenarios/lib/measure.py
          + builtins.readFile ../scenarios/lib/databases.py
          + builtins.readFile (../scenarios + "/${file}");
      }
    );
in
lib.listToAttrs (map test scenarios)
// {
  template = import ./template.nix {
    inherit
      lib
      pkgs
      sops-nix
      nixosModules
      ;
  };
}
