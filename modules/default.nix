# Everything. Each file is one concern and does nothing on a host that it does not concern.
{
  imports = [
    ./databases.nix
    ./secret.nix
    ./dependents.nix
    ./wait.nix
    ./guardian.nix
    ./firewall.nix
    ./coordinator.nix
    ./serve.nix
    ./fence.nix
    ./vip.nix
    ./vip-etcd.nix
    ./provisioning.nix
    ./assertions.nix
    ./vip-assertions.nix
  ];
}
