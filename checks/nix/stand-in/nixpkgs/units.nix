# A configuration's unit files, as NixOS would write them: `{ units."x.service" = text; links; scripts; }`.
{ lib }:
let
  inherit (lib)
    concatMapStrings
    concatStrings
    mapAttrsToList
    optionalString
    ;

  value =
    v:
    if v == true then
      "true"
    else if v == false then
      "false"
    else
      toString v;
  section =
    attrs:
    concatStrings (
      mapAttrsToList (n: v: concatMapStrings (x: "${n}=${value x}\n") (lib.toList v)) attrs
    );

  install = u: optionalString (u.wantedBy != [ ]) "\n[Install]\nWantedBy=${toString u.wantedBy}\n";
  unit = body: u: "[Unit]\n${section u.unitConfig}${body u}${install u}";
  service =
    global: u:
    let
      environment = global // u.environment;
    in
    "\n[Service]\n"
    + concatMapStrings (
      n:
      optionalString (
        environment.${n} != null
      ) "Environment=${builtins.toJSON "${n}=${environment.${n}}"}\n"
    ) (builtins.attrNames environment)
    + (
      if u.reloadIfChanged then
        "X-ReloadIfChanged=true\n"
      else
        optionalString (!u.restartIfChanged) "X-RestartIfChanged=false\n"
    )
    + optionalString (!u.stopIfChanged) "X-StopIfChanged=false\n"
    + section u.serviceConfig;
  other =
    head: field: u:
    "\n[${head}]\n${section u.${field}}";
in
config:
let
  s = config.systemd;
  kinds = [
    {
      ext = "service";
      units = s.services;
      body = service s.globalEnvironment;
    }
    {
      ext = "target";
      units = s.targets;
      body = _: "";
    }
    {
      ext = "timer";
      units = s.timers;
      body = other "Timer" "timerConfig";
    }
    {
      ext = "socket";
      units = s.sockets;
      body = other "Socket" "socketConfig";
    }
    {
      ext = "path";
      units = s.paths;
      body = other "Path" "pathConfig";
    }
    {
      ext = "slice";
      units = s.slices;
      body = other "Slice" "sliceConfig";
    }
  ];
  all = lib.concatMap (
    k:
    mapAttrsToList (n: u: {
      name = "${n}.${k.ext}";
      inherit u;
      text = unit k.body u;
    }) k.units
  ) kinds;
  enabled = builtins.filter (e: e.u.enable) all;
  installs = [
    {
      field = "wantedBy";
      folder = "wants";
    }
    {
      field = "requiredBy";
      folder = "requires";
    }
    {
      field = "upheldBy";
      folder = "upholds";
    }
  ];
in
{
  units = builtins.listToAttrs (map (e: lib.nameValuePair e.name e.text) enabled);
  # "multi-user.target.wants/io-guardian.service" = "../io-guardian.service"
  links = builtins.listToAttrs (
    lib.concatMap (
      e:
      lib.concatMap (
        k: map (by: lib.nameValuePair "${by}.${k.folder}/${e.name}" "../${e.name}") e.u.${k.field}
      ) installs
    ) enabled
  );
  scripts = lib.foldl' (a: b: a // b) { } (mapAttrsToList (_: u: u.scripts) s.services);
}
