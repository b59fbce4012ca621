# The options that our modules declare, for docs/OPTIONS.md.
let
  seen = import ./evaluate.nix { modules = [ ../../modules ]; };
in
map
  (o: {
    inherit (o) name description;
    type = o.type or "";
    default = o.default.text or null;
    # In words, and not in Nix.
    inWords = (o.default._type or "") == "literalMD";
    example = o.example.text or null;
    readOnly = o.readOnly or false;
  })
  (
    builtins.filter (
      o:
      (o.visible or true) == true && !(o.internal or false) && builtins.match "server\\..*" o.name != null
    ) (seen.lib.optionAttrSetToDocList seen.options)
  )
