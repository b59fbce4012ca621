# On each host with dependents: stops and starts them when the coordinator says so.
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  cfg = config.server.database;
  guardian = cfg.guardian;
  program = lib.getExe' cfg.package "io-guardian";
  toml = pkgs.formats.toml { };

  written = toml.generate "io-guardian.toml" guardian.settings;
  # A configuration that the guardian would refuse is refused here, and never reaches a host.
  checked =
    if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then
      pkgs.runCommand "io-guardian-checked.toml" { } ''
        ${program} serve --check-config --config ${written} --psk-file ${toString cfg.psk}
        cp ${written} $out
      ''
    else
      written;
in
{
  options.server.database.guardian = {
    enable = mkOption {
      type = types.bool;
      default = cfg.hasDependents && lib.elem "guardian" cfg.parts;
      defaultText = lib.literalMD "whether this host has dependents";
      description = "Whether the coordinator can drain and undrain this host.";
    };
    address = mkOption {
      type = types.str;
      default = config.networking.hostName;
      defaultText = lib.literalExpression "config.networking.hostName";
      example = "app1.example.net";
      description = "Name or address at which the coordinator reaches this host.";
    };
    port = mkOption {
      type = types.port;
      default = 9876;
      description = "Port of the guardian.";
    };
    commandTimeout = mkOption {
      type = ours.duration;
      default = "45s";
      description = ''
        How long a drain or an undrain may take before it is answered with an error that names what still moves. Longer
        than any dependent takes to stop, shorter than the coordinator waits.
      '';
    };
    settings = mkOption {
      type = types.submodule {
        freeformType = toml.type;
        options.host = mkOption {
          type = types.str;
          default = "0.0.0.0";
          example = "::";
          description = "Address to listen on.";
        };
      };
      default = { };
      description = "The guardian's configuration file: see `io-guardian serve --help`. It is checked when it is built.";
    };
  };

  config = mkIf guardian.enable {
    server.database.guardian.settings = {
      inherit (guardian) port;
      command-timeout = guardian.commandTimeout;
      target = "io-databases.target";
      inherit (cfg) wire;
    };

    # The programs, for whoever looks, and their manual pages.
    environment.systemPackages = [ cfg.package ];

    users.users.io-guardian = {
      isSystemUser = true;
      group = "io-guardian";
      description = "io-guardian";
    };
    users.groups.io-guardian = { };

    security.polkit.enable = true;
    # Its dependents stop and start with the target, by systemd's own rules: this one unit is all that it needs.
    security.polkit.extraConfig = ''
      polkit.addRule(function(action, subject) {
        if (action.id == "org.freedesktop.systemd1.manage-units" &&
            subject.user == "io-guardian" &&
            action.lookup("unit") == "io-databases.target" &&
            ["start", "stop"].indexOf(action.lookup("verb")) >= 0) {
          return polkit.Result.YES;
        }
      });
    '';

    systemd.services.io-guardian = {
      description = "Drain and undrain what depends on the databases";
      documentation = [ "man:io-guardian(1)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "polkit.service" ];
      after = [
        "dbus.socket"
        "dbus.service"
        "polkit.service"
      ];
      # One that restarts is back in a moment; what it stopped or started goes on.
      stopIfChanged = false;
      startLimitIntervalSec = 0;
      serviceConfig = import ./hardening.nix // {
        Type = "notify";
        ExecStart = utils.escapeSystemdExecArgs [
          program
          "serve"
          "--config"
          "${checked}"
          "--psk-file"
          (toString cfg.psk)
        ];
        # Looks at the key files.
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        User = "io-guardian";
        Group = "io-guardian";
        SupplementaryGroups = [ "io-guardian-psk" ];
        StateDirectory = "io-guardian";
        # With the restart less than the 15 s for which a drain is tried again: one that hangs is another one in time.
        WatchdogSec = "10s";
        Restart = "always";
        RestartSec = "1s";
        # A wrong command line or configuration does not get better by itself.
        RestartPreventExitStatus = "64 78";
        # It listens, and asks systemd over its bus.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      };
    };
  };
}
