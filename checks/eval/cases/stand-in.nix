# The stand-in itself: what our modules rely on, in nixpkgs and here. Run with NIXPKGS_LIB as well when it changes.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  servicesWith = module: {
    options.systemd.services = mkOption { type = types.attrsOf (types.submodule module); };
  };
  value = name: wanted: seen: {
    inherit name seen;
    ok = seen == wanted;
  };
in
{
  "an option is declared twice, and both submodules count" = {
    modules = [
      (servicesWith (
        { name, ... }:
        {
          options.note = mkOption {
            type = types.str;
            default = "of ${name}";
          };
          config = lib.mkIf (name == "app") { wantedBy = lib.mkForce [ ]; };
        }
      ))
      {
        systemd.services.app = {
          wantedBy = [ "multi-user.target" ];
          requiredBy = [ "other.target" ];
          serviceConfig.ExecStart = "/bin/true";
        };
        systemd.services.other = {
          wantedBy = [ "multi-user.target" ];
          serviceConfig.ExecStart = "/bin/true";
          note = "mine";
        };
      }
    ];
    expect = {
      links = [
        "multi-user.target.wants/other.service"
        "other.target.requires/app.service"
      ];
      noLinks = [ "multi-user.target.wants/app.service" ];
      units."app.service".lacks = [ "WantedBy=" ];
      values."systemd.services.app.note" = "of app";
      values."systemd.services.other.note" = "mine";
    };
  };

  "a type that is another cannot be declared a second time" = {
    modules = [
      { options.systemd.services = mkOption { type = types.listOf types.str; }; }
    ];
    expect.error = "is already declared in";
  };

  "a default cannot be declared a second time" = {
    modules = [
      {
        options.systemd.services = mkOption {
          type = types.attrsOf (types.submodule { });
          default = { };
        };
      }
    ];
    expect.error = "The option `systemd.services'";
  };

  "an option that nobody declares is an error" = {
    modules = [ { networking.mtu = 1500; } ];
    expect.error = "The option `networking.mtu' does not exist";
  };

  "a renamed option warns and hands its value on" = {
    modules = [
      (lib.mkRenamedOptionModule [ "old" "name" ] [ "networking" "domain" ])
      {
        _file = "host.nix";
        old.name = lib.mkForce "example.net";
      }
      { networking.domain = "example.org"; }
    ];
    expect = {
      warnings = [
        "The option `old.name' defined in `host.nix' has been renamed to `networking.domain'."
      ];
      values."networking.domain" = "example.net";
    };
  };

  "a removed option is a failed assertion" = {
    modules = [
      (lib.mkRemovedOptionModule [ "old" "name" ] "Nothing takes its place.")
      {
        _file = "host.nix";
        old.name = 1;
      }
    ];
    expect.assertions = [
      "The option definition `old.name' in `host.nix' no longer has any effect; please remove it.\nNothing takes its place.\n"
    ];
  };

  "types describe themselves, and refuse" = {
    modules = [
      {
        options.probe = mkOption {
          type = types.submodule {
            freeformType = types.attrsOf types.anything;
            options.level = mkOption { type = types.ints.between 1 3; };
          };
        };
        config.probe = {
          level = lib.mkMerge [
            (lib.mkDefault 1)
            (lib.mkIf true 2)
          ];
          free.of.any = lib.mkForce "kind";
          free.of.other = true;
        };
      }
    ];
    expect.config = config: [
      (value "freeform" {
        free.of = {
          any = "kind";
          other = true;
        };
        level = 2;
      } config.probe)
      (value "descriptions"
        [
          "list of (null or string)"
          "attribute set of integer between 1 and 3 (both inclusive)"
          "positive integer, meaning >0, or one of \"a\", \"b\""
          "list of attribute set of (submodule)"
          "16 bit unsigned integer; between 0 and 65535 (both inclusive)"
          "(positive integer, meaning >0) or string convertible to it"
          "null or string or signed integer"
          "open submodule of attribute set of string"
          "strings concatenated with \"\\n\""
        ]
        (
          map (t: t.description) [
            (types.listOf (types.nullOr types.str))
            (types.attrsOf (types.ints.between 1 3))
            (types.either types.ints.positive (
              types.enum [
                "a"
                "b"
              ]
            ))
            (types.listOf (types.attrsOf (types.submodule { })))
            types.port
            (types.coercedTo types.str lib.toInt types.ints.positive)
            (types.oneOf [
              (types.nullOr types.str)
              types.int
            ])
            (types.submodule { freeformType = types.attrsOf types.str; })
            types.lines
          ]
        )
      )
    ];
  };

  "a value of the wrong type is an error that names the option" = {
    modules = [ { systemd.services.a.startAt = 1; } ];
    expect.error = "A definition for option `systemd.services.a.startAt' is not of type `string or list of string'";
  };

  "lists are joined in the order that NixOS has" = {
    modules = [
      { systemd.targets.a.wants = lib.mkAfter [ "last.service" ]; }
      { systemd.targets.a.wants = [ "one.service" ]; }
      { systemd.targets.a.wants = [ "two.service" ]; }
      { systemd.targets.a.wants = lib.mkBefore [ "first.service" ]; }
    ];
    expect.units."a.target".has = [ "Wants=first.service one.service two.service last.service" ];
  };

  helpers = {
    modules = [ ];
    expect.config = _: [
      (value "escapeShellArgs" "a 'b c' 'd'\\''e'" (
        lib.escapeShellArgs [
          "a"
          "b c"
          "d'e"
        ]
      ))
      (value "subtractLists" [ 2 ] (
        lib.subtractLists
          [
            1
            3
          ]
          [
            1
            2
            3
          ]
      ))
      (value "range, imap0, last, unique"
        [
          [
            0
            3
            6
          ]
          3
          [
            2
            1
          ]
        ]
        [
          (lib.imap0 (i: v: i * 2 + v) (lib.range 0 2))
          (lib.last [
            1
            3
          ])
          (lib.unique [
            2
            1
            2
          ])
        ]
      )
      (value "strings"
        [
          "A.B"
          "a"
          [
            "a"
            "b"
            ""
          ]
          true
          "x, y"
        ]
        [
          (lib.toUpper "a.b")
          (lib.removeSuffix ".service" "a.service")
          (lib.splitString "." "a.b.")
          (lib.hasInfix "+b" "a+bc")
          (lib.concatMapStringsSep ", " lib.id [
            "x"
            "y"
          ])
        ]
      )
      (value "mapAttrs'" { b2 = 1; } (lib.mapAttrs' (n: v: lib.nameValuePair "${n}2" (v - 1)) { b = 2; }))
      (value "versionAtLeast"
        [ true false ]
        [
          (lib.versionAtLeast "2.10" "2.9")
          (lib.versionAtLeast "2.8" "2.9")
        ]
      )
      (value "toINI" "[a]\nb=1\nc=true\n" (
        lib.generators.toINI { } {
          a = {
            b = 1;
            c = true;
          };
        }
      ))
    ];
  };

  "options are documented" = {
    modules = [ ];
    expect.config =
      _:
      let
        docs =
          lib.optionAttrSetToDocList
            (lib.evalModules {
              modules = [
                {
                  options.a = mkOption {
                    type = types.attrsOf (
                      types.submodule (
                        { name, ... }:
                        {
                          options.b = mkOption {
                            type = types.str;
                            default = name;
                            defaultText = lib.literalMD "the name";
                            example = "x\"y";
                            description = "Text.";
                          };
                        }
                      )
                    );
                    default = { };
                    example = {
                      one.b = "two";
                      three = [
                        1
                        true
                        null
                      ];
                    };
                    description = "Things.";
                  };
                }
              ];
            }).options;
        doc = name: lib.findFirst (d: d.name == name) null docs;
        part =
          name:
          let
            d = doc name;
          in
          {
            inherit (d)
              description
              type
              visible
              internal
              readOnly
              ;
            default = d.default.text;
            example = d.example.text;
          };
      in
      [
        (value "a" {
          description = "Things.";
          type = "attribute set of (submodule)";
          visible = true;
          internal = false;
          readOnly = false;
          default = "{ }";
          example = "{\n  one = {\n    b = \"two\";\n  };\n  three = [\n    1\n    true\n    null\n  ];\n}";
        } (part "a"))
        (value "a.<name>.b" {
          description = "Text.";
          type = "string";
          visible = true;
          internal = false;
          readOnly = false;
          default = "the name";
          example = "\"x\\\"y\"";
        } (part "a.<name>.b"))
      ];
  };
}
