# Types of our options, with words that say what is wrong with a value.
{ lib }:
let
  units = {
    ms = 1;
    s = 1000;
    m = 60 * 1000;
    h = 3600 * 1000;
  };
  octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  part = text: builtins.match "([0-9]+)(ms|s|m|h)" text;
  parts = text: map part (lib.filter (word: word != "") (lib.splitString " " text));
in
rec {
  # As io-guardian reads it: a bare number has no unit and is refused.
  duration = lib.mkOptionType {
    name = "duration";
    description = "duration with a unit, like `5s`, `2m` or `1m 30s`";
    descriptionClass = "noun";
    check = value: lib.isString value && parts value != [ ] && lib.all (p: p != null) (parts value);
    merge = lib.mergeEqualOption;
  };
  milliseconds =
    value:
    lib.foldl' (sum: p: sum + lib.toInt (lib.elemAt p 0) * units.${lib.elemAt p 1}) 0 (parts value);
  seconds = value: milliseconds value / 1000.0;
  # The other way round, as somebody would write it.
  inWords = ms: if lib.mod ms 1000 == 0 then "${toString (ms / 1000)}s" else "${toString ms}ms";

  # What lies in the store can be read by everyone on the host, and by whoever gets a copy of it.
  secretPath = lib.mkOptionType {
    name = "secretPath";
    description = "absolute path, as text, outside of the Nix store (which everyone can read)";
    descriptionClass = "noun";
    check =
      value: lib.isString value && lib.hasPrefix "/" value && !lib.hasPrefix builtins.storeDir value;
    merge = lib.mergeEqualOption;
  };

  # A single address as the network that it is, for programs that want a length.
  network =
    value:
    if lib.hasInfix "/" value then
      value
    else if lib.hasInfix ":" value then
      "${value}/128"
    else
      "${value}/32";

  # A network, or a single address.
  subnet = lib.mkOptionType {
    name = "subnet";
    description = "IPv4 or IPv6 network, like `192.168.1.0/24` or `fd00::/8`";
    descriptionClass = "noun";
    check =
      value:
      lib.isString value
      && (
        builtins.match "${octet}(\\.${octet}){3}(/([0-9]|[12][0-9]|3[0-2]))?" value != null
        || (
          lib.hasInfix ":" value
          && builtins.match "[0-9a-fA-F:.]+(/([0-9]|[1-9][0-9]|1[01][0-9]|12[0-8]))?" value != null
        )
      );
    merge = lib.mergeEqualOption;
  };

  # What is no network: somebody's own.
  address = lib.mkOptionType {
    name = "address";
    description = "IPv4 or IPv6 address, like `192.168.1.10` or `fd00::10`";
    descriptionClass = "noun";
    check = value: subnet.check value && !lib.hasInfix "/" value;
    merge = lib.mergeEqualOption;
  };

  # Options for a program's figures.
  metrics =
    { of, port }:
    {
      enable = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether ${of} has figures for Prometheus at `/metrics`, and `/healthz` (docs/MONITORING.md).";
      };
      address = lib.mkOption {
        type = lib.types.str;
        default = "127.0.0.1";
        example = "0.0.0.0";
        description = "Where they are to be had. Whoever reaches that may read them.";
      };
      port = lib.mkOption {
        type = lib.types.port;
        default = port;
        description = "Port of it.";
      };
      openFirewall = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether the firewall lets `server.network.subnets` in on it.";
      };
    };
}
