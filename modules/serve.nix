# On the primary: shows the fleet, for people and for a monitoring system.
{
  config,
  lib,
  utils,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  ours = import ./types.nix { inherit lib; };
  fleet = import ../lib { inherit lib; };
  cfg = config.server.database;
  serve = cfg.coordinator.serve;
  commands = serve.tokenFile != null;
in
{
  options.server.database.coordinator.serve = {
    enable = mkOption {
      type = types.bool;
      default = false;
      description = "Whether this host follows the fleet and shows it: a page, figures for Prometheus, `/healthz` (docs/MONITORING.md).";
    };
    address = mkOption {
      type = types.str;
      default = "127.0.0.1";
      example = "0.0.0.0";
      description = ''
        Where. Whoever reaches it may look, and there is no TLS: leave it on this host, and let a proxy with both in front of it, or look
        through `ssh -L 9877:localhost:9877`.
      '';
    };
    port = mkOption {
      type = types.port;
      default = 9877;
      description = "Port of it.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether the firewall lets `server.network.subnets` in on it.";
    };
    tokenFile = mkOption {
      type = types.nullOr ours.secretPath;
      default = null;
      example = lib.literalExpression "config.sops.secrets.IO_COORDINATOR_TOKEN.path";
      description = "File with what people show to drain, undrain, hold and release from the page: at least 32 characters. null: nobody can.";
    };
  };

  config = mkIf (cfg.coordinator.enable && serve.enable) {
    systemd.services.io-coordinator-serve = {
      description = "Show the fleet";
      documentation = [ "man:io-coordinator(1)" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "nss-lookup.target"
      ];
      restartTriggers = [ config.environment.etc."io-guardian/hosts".text ];
      startLimitIntervalSec = 0;
      environment.GUARDIAN_WIRE = cfg.wire;
      serviceConfig = import ./hardening.nix // {
        Type = "notify";
        ExecStart =
          utils.escapeSystemdExecArgs (
            [
              (lib.getExe' cfg.package "io-coordinator")
              "serve"
              "--hosts-file"
              "/etc/io-guardian/hosts"
              "--psk-file"
              (toString cfg.psk)
              "--timeout"
              cfg.coordinator.timeout
              "--connect-timeout"
              cfg.coordinator.connectTimeout
              "--listen"
              (fleet.endpoint serve.address serve.port)
            ]
            ++ lib.optionals commands [
              "--generation-file"
              "/var/lib/io-coordinator/generation"
            ]
          )
          # %d is systemd's: it must not be escaped.
          + lib.optionalString commands " --token-file %d/token";
        LoadCredential = lib.optional commands "token:${serve.tokenFile}";
        # The coordinator's own: commands from here take their generations from the same file.
        User = "io-coordinator";
        Group = "io-coordinator";
        SupplementaryGroups = [ "io-guardian-psk" ];
        StateDirectory = lib.mkIf commands "io-coordinator";
        WatchdogSec = "30s";
        Restart = "always";
        RestartSec = "5s";
        # A wrong command line or configuration does not get better by itself.
        RestartPreventExitStatus = "64 78";
        # A connection to each host, and a thread for each name that is looked up.
        TasksMax = 1024;
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      };
    };
  };
}
