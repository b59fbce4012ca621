# A file of cases, as run.py asks for it: what each expects, and what is seen when its modules are evaluated.
{ file }:
let
  inherit (import ../nix/evaluate.nix { modules = [ ]; }) lib pkgs;
  loaded = import file;
  given = if builtins.isFunction loaded then loaded { inherit lib pkgs; } else loaded;
  cases =
    if given ? modules || given ? expect then
      { ${lib.removeSuffix ".nix" (baseNameOf file)} = given; }
    else
      given;
in
rec {
  expected = builtins.mapAttrs (_: case: {
    keys = builtins.attrNames case;
    expectKeys = builtins.attrNames case.expect;
    expect = removeAttrs case.expect [ "config" ];
  }) cases;

  seen = builtins.mapAttrs (
    _: case:
    let
      seen = import ../nix/evaluate.nix { inherit (case) modules; };
      inherit (case) expect;
    in
    {
      inherit (seen)
        units
        links
        assertions
        warnings
        firewall
        secrets
        ;
      values = builtins.mapAttrs (
        path: _: lib.getAttrFromPath (lib.splitString "." path) seen.config
      ) expect.values or { };
      config = map (r: {
        inherit (r) name ok;
        seen = r.seen or null;
      }) ((expect.config or (_: [ ])) seen.config);
    }
  ) cases;

  # All that is expected to succeed, at once.
  all = {
    inherit expected;
    seen = lib.filterAttrs (n: _: !(cases.${n}.expect ? error)) seen;
  };
}
