# The key that all hosts of the fleet share. It is a file that sops-nix or somebody else puts there; systemd reads it and
# hands it on as a credential, but to the coordinator: a credential is that of the unit's start, and a drain that comes weeks
# later must have the key of that day. It is never in the store, in argv or in the environment.
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
        File that holds the pre-shared key, at least 32 characters; the same on all hosts. Readable by root, and on the
        primary by the group `io-coordinator`. null: the sops secret `IO_GUARDIAN_PSK`, which needs sops-nix.
      '';
    };
    useSops = mkOption {
      type = types.bool;
      default = sops;
      defaultText = lib.literalMD "whether sops-nix is imported";
      description = "Whether secrets come from sops-nix: the key, unless `pskFile` is set, and the passwords of the databases.";
    };
    psk = mkOption {
      type = types.nullOr types.str;
      internal = true;
      readOnly = true;
      default =
        if cfg.pskFile != null then
          cfg.pskFile
        else if cfg.useSops && sops then
          config.sops.secrets.IO_GUARDIAN_PSK.path
        else
          null;
    };
    needsPsk = mkOption {
      type = types.bool;
      internal = true;
      readOnly = true;
      default = cfg.guardian.enable || cfg.coordinator.enable;
    };
  };

  config = lib.optionalAttrs sops {
    sops.secrets = mkIf (cfg.useSops && cfg.pskFile == null && cfg.needsPsk) {
      IO_GUARDIAN_PSK = {
        # Not the coordinator: a restart of it drains the fleet. It reads the key each time.
        restartUnits = lib.optional cfg.guardian.enable "io-guardian.service";
      }
      // lib.optionalAttrs cfg.coordinator.enable {
        group = "io-coordinator";
        mode = "0440";
      };
    };
  };
}
