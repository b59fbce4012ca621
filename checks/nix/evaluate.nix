# Modules with the stand-in's options, evaluated, as checks want to see them. Nothing is built.
#   nix-instantiate --eval --strict --json checks/nix/evaluate.nix --arg modules '[ ./host.nix ]' -A units
#
# With NIXPKGS_LIB=…/lib the modules are evaluated by nixpkgs' own lib instead.
{
  lib ? import (
    let
      real = builtins.getEnv "NIXPKGS_LIB";
    in
    if real != "" then real else ./stand-in/nixpkgs/lib.nix
  ),
  modules,
}:
let
  pkgs = import ./stand-in/nixpkgs/pkgs.nix {
    inherit lib;
    inert = true;
  };
  eval = lib.evalModules {
    modules = [
      ./stand-in/nixpkgs/options.nix
      { _module.args = { inherit pkgs; }; }
    ]
    ++ modules;
  };
  inherit (eval) config options;
  rendered = import ./stand-in/nixpkgs/units.nix { inherit lib; } config;
  inherit (config.networking) firewall;
in
{
  inherit
    config
    options
    lib
    pkgs
    ;
  inherit (rendered) units links scripts;
  inherit (config) warnings;
  assertions = map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
  firewall = {
    inherit (firewall)
      allowedTCPPorts
      allowedUDPPorts
      backend
      extraCommands
      extraInputRules
      ;
    interfaces = builtins.mapAttrs (_: i: i.allowedTCPPorts) firewall.interfaces;
  };
  secrets = builtins.mapAttrs (_: s: {
    inherit (s)
      path
      mode
      owner
      group
      sopsFile
      restartUnits
      reloadUnits
      ;
  }) config.sops.secrets;
}
