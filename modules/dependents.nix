# What runs only while the databases are online, and the target that stands for that.
#
# Ties are written from the target's side (a link in the dependent's .requires/, and Before= in the target): so they hold for
# units of packages too, and a list of dependents may be computed from `systemd.services` without going round in a circle.
# The one thing that has to be said in the dependent itself is that nobody else starts it.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkIf mkOption types;
  cfg = config.server.database;
  target = "io-databases.target";

  suffixes = [
    "service"
    "socket"
    "timer"
    "path"
    "target"
    "mount"
    "scope"
    "slice"
    "swap"
    "automount"
    "device"
  ];
  suffixOf = unit: lib.last (lib.splitString "." unit);
  hasSuffix = unit: lib.hasInfix "." unit && lib.elem (suffixOf unit) suffixes;
  base = unit: if hasSuffix unit then lib.removeSuffix ".${suffixOf unit}" unit else unit;
  full = unit: if hasSuffix unit then unit else "${unit}.service";

  declared = lib.unique (lib.attrNames cfg.postgres ++ lib.attrNames cfg.redis);
  isTemplate = unit: lib.hasSuffix "@" (base unit);
  listed = lib.filter (unit: !isTemplate unit) (map full cfg.dependentServices);
  # Names alone, of options alone: what the units look like may depend on this.
  bases = lib.unique (declared ++ map base cfg.dependentServices);

  enabled = units: lib.attrNames (lib.filterAttrs (_: unit: unit.enable) units);
  ofKind = kind: units: map (name: "${name}.${kind}") (lib.intersectLists bases (enabled units));
  activators =
    ofKind "socket" config.systemd.sockets
    ++ ofKind "timer" config.systemd.timers
    ++ ofKind "path" config.systemd.paths;
  services = lib.filter (unit: !isTemplate unit) (ofKind "service" config.systemd.services);
  all = lib.unique (services ++ activators ++ listed);
  # A socket with Accept= starts an instance for each connection: their names are not known, and they are tied by their template.
  templates = lib.unique (
    lib.filter isTemplate (map full cfg.dependentServices)
    ++ map (name: "${name}@.service") (
      lib.filter (name: config.systemd.services ? "${name}@") (
        lib.intersectLists bases (enabled config.systemd.sockets)
      )
    )
  );

  isService = unit: suffixOf unit == "service";
  # Started by its socket, timer or path, and by nothing else.
  isActivated =
    unit:
    isService unit
    && lib.any (other: base other == base unit) (activators ++ lib.filter (u: !isService u) listed);
  isOneshot =
    unit:
    isService unit
    && (config.systemd.services.${base unit}.serviceConfig.Type or "simple") == "oneshot";
  pulled = lib.filter (unit: !isActivated unit) all;
  # Whatever ended is started again as long as the databases are online. Not what is meant to end.
  upheld = lib.filter (unit: isService unit && !isOneshot unit) pulled;

  onlyByTarget =
    kind:
    types.attrsOf (
      types.submodule (
        { name, ... }:
        {
          config = lib.mkMerge [
            (mkIf (cfg.hasDependents && lib.elem name bases) (
              {
                wantedBy = lib.mkForce [ ];
              }
              // lib.optionalAttrs (kind == "services") {
                # A deployment that stops first and starts later does not get there: the target starts again what it upholds, from
                # the old unit file, and the start then finds it running.
                stopIfChanged = lib.mkDefault false;
              }
            ))
            (lib.optionalAttrs (kind == "services") {
              # The target cannot say it: Before= takes no template.
              after = mkIf (lib.elem "${name}.service" templates) [ target ];
            })
          ];
        }
      )
    );
in
{
  options = {
    server.database = {
      dependentServices = mkOption {
        type = types.listOf (types.strMatching "[A-Za-z0-9:_.@\\-]+");
        default = [ ];
        example = [
          "my-service"
          "backup.timer"
        ];
        description = ''
          Units that depend on the databases, beside those that are named like a database of `postgres` or `redis`. A
          name without a suffix is a service. A service's socket, timer or path of the same name, and the service of a
          socket, timer or path, belong to it, and so do the instances that a socket with `Accept=` starts (`NAME@`).

          They start only when `io-databases.target` is active, stop when it stops, and restart when it restarts.
          Nothing else starts them at boot: their `wantedBy` is emptied (`lib.mkOverride 40` puts it back).
        '';
      };
      dependents = mkOption {
        type = types.listOf types.str;
        readOnly = true;
        default = all ++ templates;
        defaultText = lib.literalMD "worked out";
        description = "All units that depend on the databases, with their suffixes.";
      };
      hasDependents = mkOption {
        type = types.bool;
        internal = true;
        readOnly = true;
        default = declared != [ ] || cfg.dependentServices != [ ];
      };
    };
    systemd = lib.genAttrs [ "services" "sockets" "timers" "paths" ] (
      kind: mkOption { type = onlyByTarget kind; }
    );
  };

  config = mkIf cfg.hasDependents {
    systemd.targets.io-databases = {
      description = "The databases are online";
      documentation = [ "man:io-guardian(1)" ];
      requires = [ "wait-for-io-databases.service" ];
      after = [ "wait-for-io-databases.service" ];
      # Before=: they start when the target is reached, and it is not down before they are. Without it Upholds= orders the
      # target after them, which lets them start first.
      before = all;
      requiredBy = all ++ templates;
      upholds = upheld;
      wants = lib.subtractLists upheld pulled;
      # A switch starts every target that is active or on its way. This one's start asks the databases: while they are away the
      # switch would not end.
      unitConfig.X-OnlyManualStart = true;
    };

    # Once in each boot, and not again when a configuration is switched: a host that was drained stays drained. (What
    # multi-user.target wants is started by each switch.)
    systemd.services.io-databases-boot = {
      description = "Start what depends on the databases, once in each boot";
      documentation = [ "man:io-guardian(1)" ];
      wantedBy = [ "multi-user.target" ];
      restartIfChanged = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
      };
      # The file is there for as long as somebody holds this host down (`io-coordinator hold`); when that is over the guardian starts
      # what it has held. No condition of the unit: it would stay inactive, and the next switch would start it.
      # Asked for and not waited for: a boot goes on while the databases are away.
      script = ''
        if [ ! -e /var/lib/io-guardian/hold.json ]; then
          ${config.systemd.package}/bin/systemctl start --no-block ${target}
        fi
      '';
    };
  };
}
