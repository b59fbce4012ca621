# Nix values as TOML. Enough for settings: strings, numbers, booleans, lists of these, tables in tables.
{ lib }:
let
  inherit (lib) concatMapStringsSep isAttrs mapAttrsToList;

  # JSON's strings are TOML's basic strings.
  key = n: if builtins.match "[A-Za-z0-9_-]+" n != null then n else builtins.toJSON n;
  value =
    v:
    if builtins.isList v then
      "[${concatMapStringsSep ", " value v}]"
    else if isAttrs v then
      "{ ${lib.concatStringsSep ", " (mapAttrsToList (n: x: "${key n} = ${value x}") v)} }"
    else if builtins.isBool v || builtins.isInt v || builtins.isFloat v || builtins.isString v then
      builtins.toJSON v
    else if builtins.isPath v then
      builtins.toJSON (toString v)
    else
      throw "TOML has no ${builtins.typeOf v}";

  isTable = v: isAttrs v && !lib.isDerivation v;
  table =
    path: t:
    let
      plain = lib.filterAttrs (_: v: !isTable v) t;
      tables = lib.filterAttrs (_: isTable) t;
      head =
        lib.optionalString (path != [ ] && (plain != { } || tables == { }))
          "[${concatMapStringsSep "." key path}]\n";
      body = lib.concatStrings (mapAttrsToList (n: v: "${key n} = ${value v}\n") plain);
      own = lib.optional (head + body != "") (head + body);
    in
    own ++ lib.concatLists (mapAttrsToList (n: table (path ++ [ n ])) tables);
in
t: lib.concatStringsSep "\n" (table [ ] t)
