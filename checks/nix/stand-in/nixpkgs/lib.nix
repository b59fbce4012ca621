# A small `lib`, written from the documented behaviour of nixpkgs' own, for machines that cannot reach nixpkgs. It has
# what this project's modules and flake use: the module system (mkOption, mkIf, mkMerge, priorities, ordering,
# submodules, freeform settings, options declared twice) and the everyday helpers for lists, strings and sets.
#
# What is not here is an error, and stays one: a module that starts to use more adds its slice.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    functionArgs
    head
    isAttrs
    isBool
    isFloat
    isFunction
    isInt
    isList
    isPath
    isString
    length
    map
    mapAttrs
    match
    removeAttrs
    sort
    split
    tail
    toJSON
    typeOf
    zipAttrsWith
    ;

  # ---------------------------------------------------------------- lists, strings, sets
  basic = rec {
    inherit (builtins)
      all
      any
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elem
      elemAt
      filter
      foldl'
      functionArgs
      genList
      getAttr
      groupBy
      hasAttr
      head
      isAttrs
      isBool
      isFloat
      isFunction
      isInt
      isList
      isPath
      isString
      length
      listToAttrs
      map
      mapAttrs
      match
      partition
      removeAttrs
      replaceStrings
      sort
      stringLength
      substring
      tail
      toJSON
      trace
      typeOf
      zipAttrsWith
      catAttrs
      fromJSON
      fromTOML
      readFile
      pathExists
      seq
      deepSeq
      add
      sub
      div
      lessThan
      tryEval
      toFile
      intersectAttrs
      compareVersions
      splitVersion
      bitAnd
      bitOr
      bitXor
      genericClosure
      ;
    id = x: x;
    const = x: _: x;
    flip =
      f: a: b:
      f b a;
    pipe = foldl' (x: f: f x);
    toFunction = v: if isFunction v then v else _: v;
    optional = c: x: if c then [ x ] else [ ];
    optionals = c: xs: if c then xs else [ ];
    optionalString = c: s: if c then s else "";
    optionalAttrs = c: a: if c then a else { };
    singleton = x: [ x ];
    toList = x: if isList x then x else [ x ];
    flatten = x: if isList x then concatMap flatten x else [ x ];
    foldr =
      f: z: xs:
      foldl' (acc: x: f x acc) z (reverseList xs);
    fold = foldr;
    reverseList =
      xs:
      let
        n = length xs;
      in
      genList (i: elemAt xs (n - i - 1)) n;
    range = a: b: if a > b then [ ] else genList (i: a + i) (b - a + 1);
    last = xs: elemAt xs (length xs - 1);
    init = xs: genList (elemAt xs) (length xs - 1);
    take = n: xs: genList (elemAt xs) (if n < length xs then n else length xs);
    drop =
      n: xs:
      let
        k = length xs - n;
      in
      if k <= 0 then [ ] else genList (i: elemAt xs (n + i)) k;
    imap0 = f: xs: genList (i: f i (elemAt xs i)) (length xs);
    imap1 = f: xs: genList (i: f (i + 1) (elemAt xs i)) (length xs);
    unique = foldl' (acc: x: if elem x acc then acc else acc ++ [ x ]) [ ];
    allUnique = xs: length (unique xs) == length xs;
    count = p: xs: length (filter p xs);
    findFirst =
      p: d: xs:
      let
        r = filter p xs;
      in
      if r == [ ] then d else head r;
    intersectLists = e: filter (x: elem x e);
    subtractLists = e: filter (x: !elem x e);
    remove = e: filter (x: x != e);
    zipLists = a: b: zipListsWith (fst: snd: { inherit fst snd; }) a b;
    zipListsWith =
      f: a: b:
      genList (i: f (elemAt a i) (elemAt b i)) (if length a < length b then length a else length b);
    mutuallyExclusive = a: b: length a == 0 || !any (x: elem x a) b;
    sortOn = f: sort (a: b: f a < f b);
    naturalSort = sort (a: b: a < b);
    min = a: b: if a < b then a else b;
    max = a: b: if a > b then a else b;
    mod = a: b: a - b * (a / b);

    nameValuePair = name: value: { inherit name value; };
    mapAttrsToList = f: s: map (n: f n s.${n}) (attrNames s);
    attrsToList = mapAttrsToList nameValuePair;
    mapAttrs' = f: s: listToAttrs (mapAttrsToList f s);
    filterAttrs = p: s: removeAttrs s (filter (n: !p n s.${n}) (attrNames s));
    genAttrs = names: f: listToAttrs (map (n: nameValuePair n (f n)) names);
    concatMapAttrs = f: s: foldl' (a: b: a // b) { } (mapAttrsToList f s);
    mergeAttrsList = foldl' (a: b: a // b) { };
    foldlAttrs =
      f: z: s:
      foldl' (acc: n: f acc n s.${n}) z (attrNames s);
    attrByPath =
      p: d: s:
      if p == [ ] then
        s
      else if isAttrs s && s ? ${head p} then
        attrByPath (tail p) d s.${head p}
      else
        d;
    hasAttrByPath =
      p: s: p == [ ] || (isAttrs s && s ? ${head p} && hasAttrByPath (tail p) s.${head p});
    getAttrFromPath = p: s: foldl' (acc: n: acc.${n}) s p;
    attrVals = names: s: map (n: s.${n}) names;
    setAttrByPath = p: v: if p == [ ] then v else { ${head p} = setAttrByPath (tail p) v; };
    recursiveUpdate =
      a: b:
      a
      // mapAttrs (
        n: v: if a ? ${n} && isAttrs a.${n} && isAttrs v then recursiveUpdate a.${n} v else v
      ) b;
    isDerivation = v: isAttrs v && (v.type or null) == "derivation";

    concatStrings = concatStringsSep "";
    concatMapStrings = f: xs: concatStrings (map f xs);
    concatMapStringsSep =
      sep: f: xs:
      concatStringsSep sep (map f xs);
    concatImapStringsSep =
      sep: f: xs:
      concatStringsSep sep (imap1 f xs);
    concatMapAttrsStringSep =
      sep: f: s:
      concatStringsSep sep (mapAttrsToList f s);
    concatLines = concatMapStrings (s: s + "\n");
    hasPrefix = p: s: substring 0 (stringLength p) s == p;
    hasSuffix =
      p: s:
      let
        n = stringLength s;
        k = stringLength p;
      in
      n >= k && substring (n - k) k s == p;
    hasInfix = i: s: length (split (escapeRegex i) s) > 1;
    removePrefix = p: s: if hasPrefix p s then substring (stringLength p) (stringLength s) s else s;
    removeSuffix = p: s: if hasSuffix p s then substring 0 (stringLength s - stringLength p) s else s;
    splitString = sep: s: filter isString (split (escapeRegex sep) s);
    stringToCharacters = s: genList (i: substring i 1 s) (stringLength s);
    lowerChars = stringToCharacters "abcdefghijklmnopqrstuvwxyz";
    upperChars = stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    toUpper = replaceStrings lowerChars upperChars;
    toLower = replaceStrings upperChars lowerChars;
    escape = chars: replaceStrings chars (map (c: "\\${c}") chars);
    escapeRegex = escape (stringToCharacters "\\[{()^$?*+|.");
    trim =
      s:
      let
        m = match "[ \t\r\n]*(.*[^ \t\r\n])[ \t\r\n]*" s;
      in
      if m == null then "" else head m;
    escapeShellArg =
      a:
      let
        s = toString a;
      in
      if match "[[:alnum:],._+:@%/-]+" s == null then "'${replaceStrings [ "'" ] [ "'\\''" ] s}'" else s;
    escapeShellArgs = concatMapStringsSep " " escapeShellArg;
    boolToString = b: if b then "true" else "false";
    toInt = s: builtins.fromJSON s;
    fixedWidthString =
      w: f: s:
      if stringLength s >= w then s else fixedWidthString w f (f + s);
    versionOlder = a: b: builtins.compareVersions b a == 1;
    versionAtLeast = a: b: !versionOlder a b;
    makeBinPath = ps: concatStringsSep ":" (map (p: "${p}/bin") (filter (p: p != null) ps));
    makeSearchPath = sub: ps: concatStringsSep ":" (map (p: "${p}/${sub}") (filter (p: p != null) ps));
    getName = p: p.pname or p.name;
    getExe = p: "${p}/bin/${p.meta.mainProgram or p.pname or p.name}";
    getExe' = p: b: "${p}/bin/${b}";
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    literalMD = text: {
      _type = "literalMD";
      inherit text;
    };
    warn = builtins.warn or (msg: v: trace "warning: ${msg}" v);
    warnIf = c: m: if c then warn m else id;
    throwIf = c: m: if c then throw m else id;
    throwIfNot = c: throwIf (!c);
    assertMsg = p: m: p || throw m;
    importJSON = p: builtins.fromJSON (builtins.readFile p);
    fileContents = p: removeSuffix "\n" (builtins.readFile p);
    showOption = concatStringsSep ".";
    showFiles = files: concatStringsSep " and " (map (f: "`${f}'") files);
    collect =
      p: s:
      if p s then
        [ s ]
      else if isAttrs s then
        concatMap (collect p) (attrValues s)
      else
        [ ];
    defaultTo = d: v: if v == null then d else v;
    # A value as Nix code, over several lines, as options are documented with.
    pretty =
      multiline: indent: v:
      let
        deeper = indent + "  ";
        open = if multiline then "\n${deeper}" else " ";
        close = if multiline then "\n${indent}" else " ";
        name = n: if match "[a-zA-Z_][a-zA-Z0-9_'-]*" n != null then n else toJSON n;
        text = s: replaceStrings [ "\\" "\"" "\${" "\n" "\t" ] [ "\\\\" "\\\"" "\\\${" "\\n" "\\t" ] s;
        block =
          s:
          "''${open}${
            concatStringsSep open (splitString "\n" (replaceStrings [ "''" "\${" ] [ "'''" "''\${" ] s))
          }''";
      in
      if v == null then
        "null"
      else if isBool v then
        boolToString v
      else if isInt v then
        toString v
      else if isFloat v then
        toJSON v
      else if isString v then
        (if multiline && length (splitString "\n" v) > 1 then block v else "\"${text v}\"")
      else if isPath v then
        toString v
      else if isFunction v then
        "<function>"
      else if isList v then
        (
          if v == [ ] then
            "[ ]"
          else
            "[${open}${concatMapStringsSep open (pretty multiline deeper) v}${close}]"
        )
      else if isDerivation v then
        "<derivation ${v.name or "???"}>"
      else if v == { } then
        "{ }"
      else
        "{${open}${
          concatStringsSep open (mapAttrsToList (n: x: "${name n} = ${pretty multiline deeper x};") v)
        }${close}}";
    cartesianProduct =
      s: foldl' (acc: n: concatMap (a: map (v: a // { ${n} = v; }) s.${n}) acc) [ { } ] (attrNames s);
    generators = {
      toJSON = { }: builtins.toJSON;
      toPretty =
        {
          multiline ? true,
          ...
        }:
        pretty multiline "";
      toINI =
        {
          mkSectionName ? (n: n),
          mkKeyValue ? (k: v: "${k}=${if isBool v then boolToString v else toString v}"),
        }:
        s:
        concatStringsSep "\n" (
          mapAttrsToList (n: body: "[${mkSectionName n}]\n${concatLines (mapAttrsToList mkKeyValue body)}") s
        );
      toKeyValue =
        {
          mkKeyValue ? k: v: "${k}=${toString v}",
          listsAsDuplicateKeys ? false,
        }:
        s:
        concatLines (
          concatLists (
            mapAttrsToList (k: v: map (mkKeyValue k) (if listsAsDuplicateKeys && isList v then v else [ v ])) s
          )
        );
    };
  };
  inherit (basic)
    showOption
    setAttrByPath
    optional
    optionalAttrs
    hasPrefix
    last
    ;

  # ---------------------------------------------------------------- properties
  isType = t: v: isAttrs v && (v._type or null) == t;
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  mkOrder = priority: content: {
    _type = "order";
    inherit priority content;
  };
  props = {
    inherit
      mkIf
      mkMerge
      mkOverride
      mkOrder
      ;
    mkOptionDefault = mkOverride 1500;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkVMOverride = mkOverride 10;
    mkBefore = mkOrder 500;
    mkAfter = mkOrder 1500;
    mkAssert =
      a: m: c:
      mkIf (if a then true else throw "\nFailed assertion: ${m}") c;
  };

  # mkIf/mkMerge/mkOverride around an attribute set, pushed down onto its attributes; the
  # condition is not looked at here, so it may depend on config.
  pushDown =
    v:
    if isType "merge" v then
      concatMap pushDown v.contents
    else if isType "if" v then
      map (mapAttrs (_: mkIf v.condition)) (pushDown v.content)
    else if isType "override" v then
      map (mapAttrs (_: mkOverride v.priority)) (pushDown v.content)
    else
      [ v ];

  # One option's definitions, conditions decided: [{ file, value }].
  discharge =
    defs:
    concatMap (
      d:
      let
        v = d.value;
      in
      if isType "merge" v then
        discharge (
          map (value: {
            inherit (d) file;
            inherit value;
          }) v.contents
        )
      else if isType "if" v then
        (
          if !isBool v.condition then
            throw "mkIf's condition in ${d.file} is not a Boolean"
          else if v.condition then
            discharge [
              {
                inherit (d) file;
                value = v.content;
              }
            ]
          else
            [ ]
        )
      else
        [ d ]
    ) defs;
  keepHighest =
    defs:
    let
      prio = d: if isType "override" d.value then d.value.priority else 100;
      best = foldl' (m: d: basic.min m (prio d)) 9999 defs;
      strip = d: if isType "override" d.value then d // { value = d.value.content; } else d;
    in
    {
      highestPrio = best;
      values = discharge (map strip (filter (d: prio d == best) defs));
    };
  inOrder =
    defs:
    let
      prio = d: if isType "order" d.value then d.value.priority else 1000;
      strip = d: if isType "order" d.value then d // { value = d.value.content; } else d;
    in
    if !any (d: isType "order" d.value) defs then
      defs
    else
      map strip (sort (a: b: prio a < prio b) defs);

  # All of one option's definitions to one value, by its type.
  mergeDefs =
    loc: type: defs:
    let
      kept = keepHighest (discharge defs);
      values = inOrder kept.values;
      bad = filter (d: !type.check d.value) values;
    in
    {
      inherit (kept) highestPrio;
      isDefined = values != [ ];
      definitions = values;
      value =
        if bad != [ ] then
          throw "A definition for option `${showOption loc}' is not of type `${type.description}'. Definition values:\n- In `${(head bad).file}': ${show (head bad).value}"
        else if values != [ ] then
          type.merge loc values
        else if type ? emptyValue then
          type.emptyValue
        else
          throw "The option `${showOption loc}' was accessed but has no value defined. Try setting the option.";
    };
  show =
    v:
    if isFunction v then
      "<function>"
    else if isAttrs v then
      "{ ${concatStringsSep " " (map (n: "${n} = ...;") (attrNames v))} }"
    else if isList v then
      "[ ${concatStringsSep " " (map show v)} ]"
    else if isString v then
      "\"${v}\""
    else
      toJSON v;

  # ---------------------------------------------------------------- types
  # `also`, where a type has it, merges the type with another of the same name: that is how an option is declared twice.
  # What has none cannot be declared twice.
  mkOptionType =
    {
      name,
      description ? name,
      check ? (_: true),
      merge ? mergeDefault,
      getSubOptions ? (_: { }),
      descriptionClass ? null,
      ...
    }@t:
    t
    // {
      _type = "option-type";
      inherit
        name
        description
        check
        merge
        getSubOptions
        descriptionClass
        ;
    };
  mergeTypes = a: b: if a.name == b.name && a ? also then a.also b else null;
  # The type of a container around an element: the merged element's, in the same container.
  alsoElements =
    wrap: t: other:
    let
      merged = mergeTypes t other.nestedTypes.elemType;
    in
    if merged == null then null else wrap merged;
  # A part of a description, in parentheses where it could be read in two ways.
  phrase =
    classes: t: if elem t.descriptionClass classes then t.description else "(${t.description})";
  mergeOne =
    loc: defs:
    if length defs == 1 then
      (head defs).value
    else
      throw "The option `${showOption loc}' is defined multiple times while it's expected to be unique. Definition values: in ${
        concatStringsSep ", " (map (d: d.file) defs)
      }";
  # What a type does that says nothing of merging.
  mergeDefault =
    loc: defs:
    let
      values = map (d: d.value) defs;
      first = head values;
    in
    if length values == 1 then
      first
    else if all isList values then
      concatLists values
    else if all isAttrs values then
      foldl' (a: b: a // b) { } values
    else if all isBool values then
      any (v: v) values
    else if all isString values then
      basic.concatStrings values
    else if all isInt values && all (v: v == first) values then
      first
    else
      throw "Cannot merge definitions of `${showOption loc}'. Definition values: in ${
        concatStringsSep ", " (map (d: d.file) defs)
      }";
  mergeEqual =
    loc: defs:
    foldl' (
      acc: d:
      if d.value == acc then
        acc
      else
        throw "The option `${showOption loc}' has conflicting definition values: ${
          concatStringsSep ", " (map (x: "${show x.value} (in ${x.file})") defs)
        }"
    ) (head defs).value defs;
  isStringLike = v: isString v || isPath v || (isAttrs v && (v ? outPath || v ? __toString));

  types = rec {
    raw = mkOptionType {
      name = "raw";
      description = "raw value";
      descriptionClass = "noun";
      merge = mergeOne;
    };
    unspecified = mkOptionType {
      name = "unspecified";
      description = "unspecified value";
      descriptionClass = "noun";
    };
    anything = mkOptionType {
      name = "anything";
      description = "anything";
      descriptionClass = "noun";
      merge =
        loc: defs:
        let
          kind = v: if isAttrs v && isStringLike v then "package" else typeOf v;
          first = kind (head defs).value;
        in
        if !all (d: kind d.value == first) defs then
          throw "The option `${showOption loc}' has conflicting option types in ${
            basic.showFiles (map (d: d.file) defs)
          }"
        else if first == "set" then
          (attrsOf anything).merge loc defs
        else if first == "package" || first == "lambda" then
          mergeOne loc defs
        else
          mergeEqual loc defs;
    };
    bool = mkOptionType {
      name = "bool";
      description = "boolean";
      descriptionClass = "noun";
      check = isBool;
      merge = mergeEqual;
    };
    int = mkOptionType {
      name = "int";
      description = "signed integer";
      descriptionClass = "noun";
      check = isInt;
      merge = mergeEqual;
    };
    float = mkOptionType {
      name = "float";
      description = "floating point number";
      descriptionClass = "noun";
      check = isFloat;
      merge = mergeEqual;
    };
    number = either int float;
    ints = rec {
      within = a: b: "between ${toString a} and ${toString b} (both inclusive)";
      between =
        a: b:
        addCheck int (x: x >= a && x <= b)
        // {
          name = "intBetween";
          description = "integer ${within a b}";
        };
      unsigned = addCheck int (x: x >= 0) // {
        name = "unsignedInt";
        description = "unsigned integer, meaning >=0";
        descriptionClass = "nonRestrictiveClause";
      };
      positive = addCheck int (x: x > 0) // {
        name = "positiveInt";
        description = "positive integer, meaning >0";
        descriptionClass = "nonRestrictiveClause";
      };
      bits =
        n: max:
        between 0 max
        // {
          name = "unsignedInt${toString n}";
          description = "${toString n} bit unsigned integer; ${within 0 max}";
        };
      u8 = bits 8 255;
      u16 = bits 16 65535;
      u32 = bits 32 4294967295;
    };
    port = ints.u16;
    str = mkOptionType {
      name = "str";
      description = "string";
      descriptionClass = "noun";
      check = isString;
      merge = mergeEqual;
    };
    nonEmptyStr = addCheck str (s: basic.trim s != "") // {
      name = "nonEmptyStr";
      description = "non-empty string";
    };
    singleLineStr = mkOptionType {
      name = "singleLineStr";
      description = "(optionally newline-terminated) single-line string";
      descriptionClass = "noun";
      check = s: isString s && match "[^\n\r]*\n?" s != null;
      merge = loc: defs: basic.removeSuffix "\n" (mergeEqual loc defs);
    };
    strMatching =
      p:
      mkOptionType {
        name = "strMatching ${builtins.toJSON p}";
        description = "string matching the pattern ${p}";
        descriptionClass = "noun";
        check = s: isString s && match p s != null;
        merge = mergeEqual;
      };
    separatedString =
      sep:
      mkOptionType {
        name = "separatedString";
        description =
          if sep == "" then "Concatenated string" else "strings concatenated with ${toJSON sep}";
        descriptionClass = "noun";
        check = isString;
        merge = _: defs: concatStringsSep sep (map (d: d.value) defs);
      };
    lines = separatedString "\n";
    commas = separatedString ",";
    envVar = separatedString ":";
    path = mkOptionType {
      name = "path";
      description = "absolute path";
      descriptionClass = "noun";
      check = v: isStringLike v && hasPrefix "/" (toString v);
      merge = mergeEqual;
    };
    package = mkOptionType {
      name = "package";
      descriptionClass = "noun";
      merge = mergeOne;
      check = v: basic.isDerivation v || (isStringLike v && hasPrefix builtins.storeDir (toString v));
    };
    enum =
      values:
      mkOptionType {
        name = "enum";
        description =
          if values == [ ] then
            "impossible (empty enum)"
          else if length values == 1 then
            "value ${show (head values)} (singular enum)"
          else
            "one of ${basic.concatMapStringsSep ", " show values}";
        descriptionClass = if length values < 2 then "noun" else "conjunction";
        check = v: elem v values;
        merge = mergeEqual;
      };
    attrs = mkOptionType {
      name = "attrs";
      description = "attribute set";
      check = isAttrs;
      merge = _: defs: foldl' (a: d: a // d.value) { } defs;
      emptyValue = { };
    };
    nullOr =
      t:
      mkOptionType {
        name = "nullOr";
        description = "null or ${phrase [ "noun" "conjunction" ] t}";
        descriptionClass = "conjunction";
        check = v: v == null || t.check v;
        merge =
          loc: defs:
          let
            n = length (filter (d: d.value == null) defs);
          in
          if n == length defs then
            null
          else if n > 0 then
            throw "The option `${showOption loc}` is defined both null and not null, in ${
              basic.showFiles (map (d: d.file) defs)
            }."
          else
            t.merge loc defs;
        emptyValue = null;
        nestedTypes.elemType = t;
        inherit (t) getSubOptions;
        also = alsoElements nullOr t;
      };
    listOf =
      t:
      mkOptionType {
        name = "listOf";
        description = "list of ${phrase [ "noun" "composite" ] t}";
        descriptionClass = "composite";
        check = isList;
        merge =
          loc: defs:
          concatLists (
            basic.imap1 (
              n: d:
              concatLists (
                basic.imap1 (
                  m: e:
                  let
                    got = mergeDefs (loc ++ [ "[definition ${toString n}-entry ${toString m}]" ]) t [
                      {
                        inherit (d) file;
                        value = e;
                      }
                    ];
                  in
                  optional got.isDefined got.value
                ) d.value
              )
            ) defs
          );
        emptyValue = [ ];
        nestedTypes.elemType = t;
        getSubOptions = loc: t.getSubOptions (loc ++ [ "*" ]);
        also = alsoElements listOf t;
      };
    nonEmptyListOf =
      t:
      addCheck (removeAttrs (listOf t) [ "emptyValue" ]) (l: l != [ ])
      // {
        description = "non-empty (${(listOf t).description})";
      };
    attrsOfWith =
      lazy: t:
      mkOptionType {
        name = if lazy then "lazyAttrsOf" else "attrsOf";
        description = "${if lazy then "lazy " else ""}attribute set of ${phrase [ "noun" "composite" ] t}";
        descriptionClass = "composite";
        check = isAttrs;
        merge =
          loc: defs:
          let
            each = concatMap (
              d:
              map (value: {
                inherit (d) file;
                inherit value;
              }) (pushDown d.value)
            ) defs;
            merged = zipAttrsWith (n: mergeDefs (loc ++ [ n ]) t) (
              map (
                d:
                mapAttrs (_: value: {
                  inherit (d) file;
                  inherit value;
                }) d.value
              ) each
            );
          in
          mapAttrs (_: m: m.value) (if lazy then merged else basic.filterAttrs (_: m: m.isDefined) merged);
        emptyValue = { };
        nestedTypes.elemType = t;
        getSubOptions = loc: t.getSubOptions (loc ++ [ "<name>" ]);
        also = alsoElements (attrsOfWith lazy) t;
      };
    attrsOf = attrsOfWith false;
    lazyAttrsOf = attrsOfWith true;
    either =
      a: b:
      mkOptionType {
        name = "either";
        description =
          if a.descriptionClass == "nonRestrictiveClause" then
            "${a.description}, or ${phrase [ "noun" "conjunction" ] b}"
          else
            "${phrase [ "noun" "conjunction" ] a} or ${phrase [ "noun" "conjunction" "composite" ] b}";
        descriptionClass = "conjunction";
        check = v: a.check v || b.check v;
        merge =
          loc: defs:
          if all (d: a.check d.value) defs then
            a.merge loc defs
          else if all (d: b.check d.value) defs then
            b.merge loc defs
          else
            mergeOne loc defs;
      };
    oneOf = ts: foldl' either (head ts) (tail ts);
    coercedTo =
      from: f: to:
      mkOptionType {
        name = "coercedTo";
        description = "${phrase [ "noun" ] to} or ${phrase [ "noun" ] from} convertible to it";
        check = v: to.check v || (from.check v && to.check (f v));
        merge =
          loc: defs:
          to.merge loc (map (d: d // { value = if from.check d.value then f d.value else d.value; }) defs);
        inherit (to) getSubOptions;
      };
    # A check would be lost in a merge of types, so there is none.
    addCheck = t: p: removeAttrs t [ "also" ] // { check = v: t.check v && p v; };
    deferredModule = mkOptionType {
      name = "deferredModule";
      description = "module";
      descriptionClass = "noun";
      check = v: isAttrs v || isFunction v || isPath v;
      merge = loc: defs: {
        imports = map (d: {
          _file = "${d.file}, via option ${showOption loc}";
          imports = [ d.value ];
        }) defs;
      };
      emptyValue = { };
    };
    submoduleWith =
      {
        modules,
        specialArgs ? { },
        shorthandOnlyDefinesConfig ? false,
      }:
      let
        module =
          v: if isAttrs v && shorthandOnlyDefinesConfig then { config = v; } else { imports = [ v ]; };
        run =
          loc: more:
          evalModules {
            inherit specialArgs;
            prefix = loc;
            modules = [
              {
                _file = "submodule name";
                config._module.args.name = mkOverride 1500 "‹name›";
              }
            ]
            ++ modules
            ++ more;
          };
        free = (run [ ] [ ]).freeformType;
      in
      mkOptionType {
        name = "submodule";
        description =
          if free == null then "submodule" else "open submodule of ${phrase [ "noun" "composite" ] free}";
        check = v: isAttrs v || isFunction v || isPath v;
        merge =
          loc: defs:
          (run loc (
            [
              {
                _file = "submodule name";
                config._module.args.name = last loc;
              }
            ]
            ++ map (d: { _file = d.file; } // module d.value) defs
          )).config;
        emptyValue = { };
        getSubOptions = loc: removeAttrs (run loc [ ]).options [ "_module" ];
        parts = { inherit modules specialArgs shorthandOnlyDefinesConfig; };
        also =
          other:
          let
            o = other.parts;
          in
          if
            builtins.intersectAttrs specialArgs o.specialArgs != { }
            || shorthandOnlyDefinesConfig != o.shorthandOnlyDefinesConfig
          then
            null
          else
            submoduleWith {
              modules = modules ++ o.modules;
              specialArgs = specialArgs // o.specialArgs;
              inherit shorthandOnlyDefinesConfig;
            };
      };
    submodule =
      modules:
      submoduleWith {
        shorthandOnlyDefinesConfig = true;
        modules = basic.toList modules;
      };
    uniq =
      t:
      removeAttrs t [ "also" ]
      // {
        merge =
          loc: defs:
          t.merge loc [
            {
              file = "unique";
              value = mergeOne loc defs;
            }
          ];
      };
  };

  # ---------------------------------------------------------------- options
  mkOption = o: o // { _type = "option"; };
  # What an option is documented with: itself and, below containers and submodules, its own options.
  docs =
    options:
    concatMap (
      o:
      let
        visible = o.visible or true;
        asText =
          v:
          if isAttrs v && v ? _type && v ? text then v else basic.literalExpression (basic.pretty true "" v);
        below = o.type.getSubOptions o.loc;
      in
      [
        (
          {
            inherit (o) loc declarations;
            name = showOption o.loc;
            description = o.description or null;
            internal = o.internal or false;
            visible = if isBool visible then visible else visible == "shallow";
            readOnly = o.readOnly or false;
            type = o.type.description;
          }
          // optionalAttrs (o ? example) { example = asText o.example; }
          // optionalAttrs (o ? defaultText || o ? default) { default = asText (o.defaultText or o.default); }
        )
      ]
      ++ basic.optionals (if isBool visible then visible else visible == "transparent") (docs below)
    ) (basic.collect (isType "option") options);
  optionHelpers = {
    inherit mkOption mkOptionType isType;
    isOption = isType "option";
    optionAttrSetToDocList = docs;
    mkEnableOption =
      what:
      mkOption {
        type = types.bool;
        default = false;
        example = true;
        description = "Whether to enable ${what}.";
      };
    mkPackageOption =
      pkgs: name:
      {
        default ? name,
        nullable ? false,
        example ? null,
        extraDescription ? "",
        pkgsText ? "pkgs",
      }:
      let
        path = basic.toList default;
      in
      mkOption (
        {
          type = if nullable then types.nullOr types.package else types.package;
          description =
            "The ${if isString name then name else showOption name} package to use."
            + basic.optionalString (extraDescription != "") " ${extraDescription}";
        }
        // (
          if default == null then
            { default = null; }
          else
            {
              default = basic.attrByPath path (throw "${showOption path} cannot be found in ${pkgsText}") pkgs;
              defaultText = basic.literalExpression "${pkgsText}.${showOption path}";
            }
        )
        // optionalAttrs (example != null) {
          example = basic.literalExpression (
            if isList example then "${pkgsText}.${showOption example}" else example
          );
        }
      );
    mkRenamedOptionModule =
      from: to:
      { config, options, ... }:
      let
        old = basic.getAttrFromPath from options;
      in
      {
        options = setAttrByPath from (mkOption {
          visible = false;
          description = "Alias of {option}`${showOption to}`.";
          type = (basic.getAttrFromPath to options).type or types.unspecified;
          apply = _: basic.getAttrFromPath to config;
        });
        config = mkMerge [
          (optionalAttrs (options ? warnings) {
            warnings = optional old.isDefined "The option `${showOption from}' defined in ${basic.showFiles old.files} has been renamed to `${showOption to}'.";
          })
          (mkIf old.isDefined (setAttrByPath to (mkMerge (map (mkOverride old.highestPrio) old.definitions))))
        ];
      };
    mkRemovedOptionModule =
      name: why:
      { options, ... }:
      let
        old = basic.getAttrFromPath name options;
      in
      {
        options = setAttrByPath name (mkOption {
          visible = false;
          apply =
            _: throw "The option `${showOption name}' can no longer be used since it's been removed. ${why}";
        });
        config.assertions = [
          {
            assertion = !old.isDefined;
            message = "The option definition `${showOption name}' in ${basic.showFiles old.files} no longer has any effect; please remove it.\n${why}\n";
          }
        ];
      };
    mergeEqualOption = mergeEqual;
    mergeOneOption = mergeOne;
  };

  # ---------------------------------------------------------------- evalModules
  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
      check ? true,
      ...
    }:
    let
      call =
        file: f:
        let
          wanted = functionArgs f;
          args =
            mapAttrs
              (
                n: _hasDefault:
                specialArgs.${n} or builtinArgs.${n} or (config._module.args.${n}
                  or (throw "The module ${file} takes the argument `${n}', which nothing gives (_module.args.${n})")
                )
              )
              # an argument with a default that nobody gives keeps its default
              (
                basic.filterAttrs (
                  n: hasDefault: !hasDefault || specialArgs ? ${n} || builtinArgs ? ${n} || config._module.args ? ${n}
                ) wanted
              );
        in
        f (specialArgs // builtinArgs // args);
      builtinArgs = {
        inherit
          lib
          config
          options
          specialArgs
          ;
      };
      meta = [
        "_file"
        "key"
        "imports"
        "options"
        "config"
        "freeformType"
        "meta"
        "_class"
        "disabledModules"
      ];

      load =
        parent: n: m:
        let
          isP = isPath m || isString m;
          file =
            if isP then
              toString m
            else if isAttrs m then
              m._file or parent
            else
              parent;
          fn = if isP then import m else m;
          body = if isFunction fn then call file fn else fn;
          full = body ? options || body ? config;
          extra = attrNames (removeAttrs body meta);
        in
        if isType "if" body || isType "merge" body || isType "override" body then
          {
            file = file;
            key = "${parent}:${n}";
            options = { };
            config = body;
            imports = [ ];
            freeform = null;
          }
        else if full && extra != [ ] then
          throw "Module `${file}' has an unsupported attribute `${head extra}'. This is caused by introducing a top-level `config' or `options' attribute. Add configuration attributes immediately on the top level instead, or move all of them (namely: ${concatStringsSep " " extra}) into the explicit `config' attribute."
        else
          {
            file = body._file or file;
            key = if isP then file else body.key or "${parent}:${n}";
            options = body.options or { };
            config = if full then body.config or { } else removeAttrs body meta;
            freeform = body.freeformType or null;
            imports = body.imports or [ ];
          };
      # breadth first, each path once, last first: the order in which NixOS joins list definitions
      loadAll = parent: basic.imap1 (n: load parent (toString n));
      loaded = basic.reverseList (
        builtins.genericClosure {
          startSet = loadAll "<root>" ([ core ] ++ modules);
          operator = m: loadAll m.key m.imports;
        }
      );
      core = {
        key = "core";
        _file = "lib.nix";
        options._module = {
          args = mkOption {
            type = types.lazyAttrsOf types.raw;
            default = { };
            internal = true;
          };
          check = mkOption {
            type = types.bool;
            default = check;
            internal = true;
          };
        };
      };
      freeform =
        let
          fs = filter (t: t != null) (map (m: m.freeform) loaded);
        in
        if fs != [ ] then head fs else null;

      # decls: [{ file, options }], defs: [{ file, value }] (value: an attribute set, pushed down)
      mergeTree =
        loc: decls: defs:
        let
          declNames = zipAttrsWith (_: xs: xs) (
            map (
              d:
              mapAttrs (_: options: {
                inherit (d) file;
                inherit options;
              }) d.options
            ) decls
          );
          defNames = zipAttrsWith (_: xs: xs) (
            map (
              d:
              mapAttrs (_: value: {
                inherit (d) file;
                inherit value;
              }) d.value
            ) defs
          );
          one =
            n: ds:
            let
              here = loc ++ [ n ];
              mine = defNames.${n} or [ ];
              opts = filter (d: isType "option" d.options) ds;
            in
            if opts != [ ] then
              if length opts != length ds then
                throw "The option `${showOption here}' in ${
                  basic.showFiles (map (d: d.file) opts)
                } would be a parent of the following options, but its type does not support nested options"
              else
                { option = evalOption here (foldl' (declareAgain here) (head ds) (tail ds)) mine; }
            else
              {
                tree = mergeTree here ds (
                  concatMap (
                    d:
                    map (value: {
                      inherit (d) file;
                      inherit value;
                    }) (pushDown d.value)
                  ) mine
                );
              };
          parts = mapAttrs one declNames;
          unknown = concatLists (
            basic.mapAttrsToList (
              n: ds:
              if declNames ? ${n} then
                [ ]
              else
                map (d: {
                  inherit (d) file value;
                  loc = loc ++ [ n ];
                  name = n;
                }) ds
            ) defNames
          );
        in
        {
          options = mapAttrs (_: p: p.option or p.tree.options) parts;
          config = mapAttrs (_: p: if p ? option then p.option.value else p.tree.config) parts;
          unknown = unknown ++ concatMap (p: if p ? tree then p.tree.unknown else [ ]) (attrValues parts);
          inherit parts;
        };

      # One declaration of an option with another one: at most one default, description and so on, and types that merge.
      declareAgain =
        loc: a: b:
        let
          twice = k: a.options ? ${k} && b.options ? ${k};
          type = mergeTypes a.options.type b.options.type;
        in
        if
          any twice [
            "default"
            "example"
            "description"
            "apply"
          ]
          || (twice "type" && type == null)
        then
          throw "The option `${showOption loc}' in `${b.file}' is already declared in ${
            basic.showFiles ([ a.file ] ++ a.others or [ ])
          }."
        else
          {
            inherit (a) file;
            others = a.others or [ ] ++ [ b.file ];
            options = b.options // a.options // optionalAttrs (twice "type") { inherit type; };
          };

      evalOption =
        loc: decl: defs:
        let
          o = decl.options;
          type = o.type or types.unspecified;
          withDefault =
            defs
            ++ optional (o ? default) {
              file = decl.file;
              value = mkOverride 1500 o.default;
            };
          m = mergeDefs loc type withDefault;
          user = discharge defs;
          value =
            if (o.readOnly or false) && length user > (if o ? default then 0 else 1) then
              throw "The option `${showOption loc}' is read-only, but it's set multiple times. Definition values: in ${
                concatStringsSep ", " (map (d: d.file) user)
              }"
            else
              m.value;
        in
        o
        // {
          inherit loc type;
          inherit (m) isDefined highestPrio;
          definitions = map (d: d.value) m.definitions;
          files = map (d: d.file) m.definitions;
          declarations = [ decl.file ] ++ decl.others or [ ];
          value = if o ? apply then o.apply value else value;
          _type = "option";
        };

      allDefs = concatMap (
        m:
        map (value: {
          inherit (m) file;
          inherit value;
        }) (pushDown m.config)
      ) loaded;
      tree = mergeTree prefix (map (m: { inherit (m) file options; }) loaded) allDefs;
      free =
        if freeform == null then
          { }
        else
          freeform.merge prefix (
            map (u: {
              inherit (u) file;
              value = setAttrByPath (basic.drop (length prefix) u.loc) u.value;
            }) tree.unknown
          );
      declared = tree.config;
      undeclared = if freeform == null then tree.unknown else [ ];
      config =
        if freeform == null || tree.unknown == [ ] then declared else basic.recursiveUpdate free declared;
      options = tree.options;
      checked =
        if declared._module.check && undeclared != [ ] then
          throw "The option `${showOption (head undeclared).loc}' does not exist. Definition values:\n- In `${(head undeclared).file}': ${show (head undeclared).value}"
        else
          removeAttrs config [ "_module" ];
    in
    {
      config = checked;
      inherit options;
      _module = declared._module;
      freeformType = freeform;
    };

  lib =
    basic
    // props
    // optionHelpers
    // {
      inherit types evalModules;
      modules = {
        inherit evalModules;
      }
      // props;
      options = optionHelpers // {
        inherit (basic) literalExpression showOption;
      };
      lists = basic;
      # What a package is built of is not looked at here, as nothing is compiled.
      sources.sourceByRegex = src: _: src;
      strings = basic;
      attrsets = basic;
      trivial = basic // {
        release = "26.05";
      };
      meta = { inherit (basic) getExe getExe'; };
      licenses = basic.genAttrs [ "mit" "asl20" "gpl3Plus" "mpl20" ] (n: {
        shortName = n;
      });
      maintainers = { };
      platforms.linux = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      systems.flakeExposed = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      version = "stand-in";
    };
in
lib
