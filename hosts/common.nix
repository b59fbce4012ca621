# What all hosts of the fleet share.
{
  server.ioPrimaryHost = "nixio";
  server.network.subnets = [
    "192.168.1.0/24"
    "fd00::/8"
  ];

  # Figures for Prometheus, for the fleet's own networks.
  server.database.guardian.metrics = {
    enable = true;
    address = "0.0.0.0";
    openFirewall = true;
  };

  # A true sops file, with a key that everyone has: make your own (docs/NIXOS.md).
  sops.defaultSopsFile = ./server/secrets.yaml;
  sops.age.keyFile = "/var/lib/sops-nix/key.txt";
}
