# A virtual machine, so that the examples are whole hosts. Yours is what nixos-generate-config wrote.
{
  boot.loader.grub.device = "/dev/vda";
  fileSystems."/" = {
    device = "/dev/vda1";
    fsType = "ext4";
  };
  system.stateVersion = "26.05";
}
