# The flake's hosts, through the stand-in, as render.py writes them. `nix-build checks/nix/hosts.nix` gives them as JSON.
let
  flake = import ../../flake.nix;
  inputs = builtins.mapAttrs (name: _: (import (./stand-in + "/${name}/flake.nix")).outputs { }) (
    removeAttrs (builtins.functionArgs flake.outputs) [ "self" ]
  );
  self = flake.outputs (inputs // { inherit self; }) // {
    outPath = ../..;
  };
  inherit (inputs.nixpkgs) lib;
  pkgs = inputs.nixpkgs.legacyPackages.x86_64-linux;

  host =
    _:
    { config, options, ... }:
    let
      inherit (config) systemd;
      rendered = import ./stand-in/nixpkgs/units.nix { inherit lib; } config;
      failed = builtins.filter (a: !a.assertion) config.assertions;

      # What some file of ours defines, wholly or in part: not what NixOS alone brings.
      ours =
        option:
        lib.unique (
          lib.concatLists (
            lib.zipListsWith (
              file: value: lib.optionals (file != "stand-in/nixpkgs/options.nix") (builtins.attrNames value)
            ) option.files option.definitions
          )
        );
      oursOf = set: option: lib.filterAttrs (name: _: lib.elem name (ours option)) set;
      # A service's timer or socket is its own, whoever wrote it.
      names = lib.concatMap (kind: ours options.systemd."${kind}s") [
        "service"
        "target"
        "timer"
        "socket"
        "path"
        "slice"
      ];
      isOurs = unit: lib.elem (lib.head (builtins.match "(.*)\\.[a-z]+" unit)) names;
      user = name: u: ''u ${name} - "${u.description}" ${u.home}'';
      accounts =
        lib.mapAttrsToList (name: _: "g ${name} -") (oursOf config.users.groups options.users.groups)
        ++ lib.mapAttrsToList user (oursOf config.users.users options.users.users)
        ++ lib.concatLists (
          lib.mapAttrsToList (
            name: u: map (group: "m ${name} ${group}") (lib.unique ([ u.group ] ++ u.extraGroups))
          ) (oursOf config.users.users options.users.users)
        );
      text = lib.concatMapStrings (line: "${line}\n");
    in
    if failed != [ ] then
      throw (lib.concatMapStringsSep "\n" (a: a.message) failed)
    else
      {
        inherit (config) warnings;
        units = lib.filterAttrs (name: _: isOurs name) rendered.units;
        # Units of which there is no file here, and which are there on such a host.
        others = builtins.attrNames (lib.filterAttrs (name: _: !isOurs name) rendered.units);
        links = lib.filterAttrs (
          link: _: isOurs (baseNameOf link) || isOurs (lib.head (builtins.match "(.*)\\.[a-z]+" (dirOf link)))
        ) rendered.links;
        scripts = lib.concatMapAttrs (
          name: s:
          lib.optionalAttrs (isOurs "${name}.service") (
            lib.mapAttrs' (script: lib.nameValuePair "unit-script-${script}/bin/${script}") s.scripts
          )
        ) systemd.services;
        etc =
          lib.mapAttrs' (
            _: e:
            lib.nameValuePair e.target (
              if e.text != null then { inherit (e) text; } else { source = "${e.source}"; }
            )
          ) (lib.filterAttrs (_: e: e.enable) config.environment.etc)
          // lib.optionalAttrs (config.security.polkit.enable && config.security.polkit.extraConfig != "") {
            "polkit-1/rules.d/10-nixos.rules".text = config.security.polkit.extraConfig;
          }
          // lib.optionalAttrs (accounts != [ ]) { "sysusers.d/nixos.conf".text = text accounts; }
          // lib.optionalAttrs (systemd.tmpfiles.rules != [ ]) {
            "tmpfiles.d/nixos.conf".text = text systemd.tmpfiles.rules;
          };
        secrets = lib.mapAttrs' (
          _: s: lib.nameValuePair s.path { inherit (s) owner group mode; }
        ) config.sops.secrets;
        # What is said to NixOS' own modules, for whoever boots this with others.
        services = {
          firewall = { inherit (config.networking.firewall) allowedTCPPorts extraCommands; };
        }
        // lib.optionalAttrs config.services.postgresql.enable {
          postgresql = {
            inherit (config.services.postgresql) authentication enableTCPIP ensureDatabases;
            ensureUsers = map (u: u.name) config.services.postgresql.ensureUsers;
          };
        }
        // lib.optionalAttrs (config.services.redis.servers ? "") {
          redis = {
            inherit (config.services.redis.servers."") bind port requirePassFile;
            stateDirectoryMode = config.systemd.services.redis.serviceConfig.StateDirectoryMode;
          };
        };
        inherit (pkgs) scriptRoot;
      };
in
pkgs.writeText "hosts.json" (builtins.toJSON (builtins.mapAttrs host self.nixosConfigurations))
