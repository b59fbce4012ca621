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
  fleet = import ../lib { inherit lib; };
  cfg = config.server.database;
  guardian = cfg.guardian;
  program = lib.getExe' cfg.package "io-guardian";
  toml = pkgs.formats.toml { };

  inherit (cfg.wait) asked;
  watches = guardian.watch.enable && asked.databases != [ ];
  orOff = duration: if duration == null then "off" else duration;

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
    watch = {
      enable = mkOption {
        type = types.bool;
        default = true;
        description = ''
          Whether the guardian asks the databases itself, the same ones and with the same login as `server.database.wait`. Then it drains
          this host when they are lost and nobody says so (a power cut), and undrains it when they are back and the
          message was missed.
        '';
      };
      drainAfter = mkOption {
        type = types.nullOr ours.duration;
        default = "30s";
        description = "How long they must be lost. null: never; only the coordinator drains.";
      };
      undrainAfter = mkOption {
        type = types.nullOr ours.duration;
        default = "5s";
        description = "How long they must be healthy after an outage. null: never; only the coordinator undrains.";
      };
      interval = mkOption {
        type = ours.duration;
        default = "5s";
        description = "From the start of one look to the start of the next; a second while something hangs on it.";
      };
      timeout = mkOption {
        type = ours.duration;
        default = "2s";
        description = "For one look, the lookup of the name included.";
      };
    };
    metrics = ours.metrics {
      of = "the guardian";
      port = 9878;
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
    }
    // lib.optionalAttrs guardian.metrics.enable {
      metrics = fleet.endpoint guardian.metrics.address guardian.metrics.port;
    }
    // lib.optionalAttrs watches {
      drain-after = orOff guardian.watch.drainAfter;
      undrain-after = orOff guardian.watch.undrainAfter;
      probe-interval = guardian.watch.interval;
      probe-timeout = guardian.watch.timeout;
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
        ExecStart =
          utils.escapeSystemdExecArgs (
            [
              program
              "serve"
              "--config"
              "${checked}"
              "--psk-file"
              (toString cfg.psk)
            ]
            ++ lib.optionals watches asked.databases
          )
          + lib.optionalString watches asked.secrets;
        LoadCredential = lib.optionals watches asked.credentials;
        # Where the password of a database is not there: a guardian that cannot watch must be there for the coordinator.
        SetCredential = lib.optionals watches (map (name: "${name}:\\n") asked.passwords);
        # Looks at the key files.
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        User = "io-guardian";
        Group = "io-guardian";
        SupplementaryGroups = [ "io-guardian-psk" ];
        StateDirectory = "io-guardian";
        # Whether the host is drained outlives a restart, and not a boot.
        RuntimeDirectory = "io-guardian";
        RuntimeDirectoryPreserve = true;
        # With the restart less than the 15 s for which a drain is tried again: one that hangs is another one in time.
        WatchdogSec = "10s";
        Restart = "always";
        RestartSec = "1s";
        # A wrong command line or configuration does not get better by itself.
        RestartPreventExitStatus = "64 78";
        # It listens, asks systemd over its bus, and databases over TCP.
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      };
    };
  };
}
