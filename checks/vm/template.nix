# The template's own flake.nix, evaluated: what it says must be a fleet that needs nothing but secrets and hardware.
{
  lib,
  pkgs,
  sops-nix,
  nixosModules,
}:
let
  # What its user adds.
  theirs =
    { ... }:
    {
      imports = [ ../../hosts/machine.nix ];
      sops.defaultSopsFile = lib.mkForce ../../hosts/server/secrets.yaml;
    };
  nixpkgs.lib = lib // {
    nixosSystem = args: lib.nixosSystem (args // { modules = args.modules ++ [ theirs ]; });
  };
  self = (import ../../templates/fleet/flake.nix).outputs {
    inherit self nixpkgs sops-nix;
    io-guardian = { inherit nixosModules; };
  };
  inherit (self.nixosConfigurations) app db;

  seen = {
    refused =
      lib.concatMap (host: map (a: a.message) (lib.filter (a: !a.assertion) host.config.assertions))
        [
          app
          db
        ];
    warnings = lib.concatMap (host: host.config.warnings) [
      app
      db
    ];
    told = db.config.server.database.coordinator.hosts;
    databases = db.config.services.postgresql.ensureDatabases;
    inherit (app.config.server.database) dependents;
    startsAtBoot = app.config.systemd.services.myapp.wantedBy;
    coordinatorOnApp = app.config.server.database.coordinator.enable;
  };
  expected = {
    refused = [ ];
    warnings = [ ];
    told = [ "app:9876" ];
    databases = [ "myapp" ];
    dependents = [ "myapp.service" ];
    startsAtBoot = [ ];
    coordinatorOnApp = false;
  };
in
if seen == expected then
  pkgs.writeText "template-is-a-fleet" (builtins.toJSON seen)
else
  throw "templates/fleet is not what its README says:\nseen     ${builtins.toJSON seen}\nexpected ${builtins.toJSON expected}"
