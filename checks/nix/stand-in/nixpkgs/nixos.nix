# What `nixosSystem` gives: a configuration, and the system that is built of it.
{
  lib ? import ./lib.nix,
  modules,
  specialArgs ? { },
  system ? null,
}:
let
  eval = lib.evalModules {
    inherit specialArgs;
    modules = [
      ./options.nix
      (
        { config, ... }:
        let
          pkgs = import ./pkgs.nix {
            inherit lib;
            system = config.nixpkgs.hostPlatform;
          };
          failed = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
        in
        {
          _module.args = { inherit pkgs; };
          system.build.toplevel =
            if failed != [ ] then
              throw "\nFailed assertions:\n${lib.concatMapStringsSep "\n" (m: "- ${m}") failed}"
            else
              lib.foldr lib.warn (pkgs.writeText "system-${config.networking.hostName}" (
                builtins.toJSON (import ./units.nix { inherit lib; } config)
              )) config.warnings;
        }
      )
      (lib.optionalAttrs (system != null) { nixpkgs.hostPlatform = lib.mkDefault system; })
    ]
    ++ modules;
  };
in
{
  inherit (eval) config options;
  inherit (eval._module.args) pkgs;
}
