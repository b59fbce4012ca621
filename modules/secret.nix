# The key that all hosts of the fleet share. It is a file that sops-nix or somebody else puts there, and guardian and coordinator
# read it themselves, as members of a group. Not a credential: that is the file of the unit's start, and a guardian that knows a new key
# without a restart, or a drain that comes weeks later, must have the file of that day. It is never in the store, in argv or in
# the environment.
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
        File that holds the pre-shared key, at least 32 characters; the same on all hosts. Readable by the group
        `io-guardian-psk`. While keys change it holds several, one on each line: all are accepted, the first is spoken. null: the
        sops secret `IO_GUARDIAN_PSK`, which needs sops-nix.
      '';
    };
    allowKeyInClear = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to speak the plain protocol with hosts that know nothing else, or pretend to: the key and the commands then
        cross the network in clear. For a fleet that is being updated.
      '';
    };
    wire = mkOption {
      type = types.str;
      internal = true;
      readOnly = true;
      default = if cfg.allowKeyInClear then "auto" else "v2";
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

  config = {
    users.groups = mkIf cfg.needsPsk { io-guardian-psk = { }; };
    # For commands by hand, sudo's too: the programs' own default would send the key in clear to whoever says that he knows no
    # better.
    environment.sessionVariables = mkIf cfg.needsPsk { GUARDIAN_WIRE = cfg.wire; };
  }
  // lib.optionalAttrs sops {
    sops.secrets = mkIf (cfg.useSops && cfg.pskFile == null && cfg.needsPsk) {
      IO_GUARDIAN_PSK = {
        group = "io-guardian-psk";
        mode = "0440";
        # The guardian looks by itself within seconds; the coordinator reads it each time.
        reloadUnits = lib.optional cfg.guardian.enable "io-guardian.service";
      };
    };
  };
}
