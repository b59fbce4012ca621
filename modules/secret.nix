# The key that all hosts of the fleet share. It is a file that sops-nix or somebody else puts there; systemd reads it and
# hands it on as a credential. It is never in the store, in argv or in the environment.
{
  config,
  lib,
  options,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  cfg = config.server.database;
  sops = options ? sops;
in
{
  options.server.database = {
    pskFile = mkOption {
      type = types.nullOr ours.secretPath;
      default = null;
      example = "/var/lib/secrets/io-guardian-psk";
      description = ''
        File that holds the pre-shared key, at least 32 characters, readable by root; the same on all hosts. null: the
        sops secret `IO_GUARDIAN_PSK`, which needs sops-nix.
      '';
    };
    psk = mkOption {
      type = types.nullOr types.str;
      internal = true;
      readOnly = true;
      default =
        if cfg.pskFile != null then
          cfg.pskFile
        else if sops then
          config.sops.secrets.IO_GUARDIAN_PSK.path
        else
          null;
    };
    usesSops = mkOption {
      type = types.bool;
      internal = true;
      readOnly = true;
      default = sops && cfg.pskFile == null;
    };
    needsPsk = mkOption {
      type = types.bool;
      internal = true;
      readOnly = true;
      default = cfg.guardian.enable || cfg.coordinator.enable;
    };
  };

  config = lib.optionalAttrs sops {
    sops.secrets = mkIf (cfg.usesSops && cfg.needsPsk) {
      # Not the coordinator: a restart of it drains the fleet. Its drain has the key of its start (docs/NIXOS.md, Rotate it).
      IO_GUARDIAN_PSK.restartUnits = lib.optional cfg.guardian.enable "io-guardian.service";
    };
  };
}
