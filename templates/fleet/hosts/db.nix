# The primary. The databases and roles that the other hosts declare are made here, and the coordinator runs here.
{
  # imports = [ ./db-hardware-configuration.nix ];   # what nixos-generate-config wrote
  system.stateVersion = "26.05";

  services.postgresql.enable = true;
  services.redis.servers."".enable = true;
  # PostgreSQL and Redis, from server.network.subnets only.
  server.database.provision.openFirewall = true;
}
