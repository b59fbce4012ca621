# The binaries, their man pages and completions.
{
  lib,
  rustPlatform,
  installShellFiles,
  protobuf,
}:
let
  cargo = (fromTOML (builtins.readFile ./Cargo.toml)).package;
in
rustPlatform.buildRustPackage {
  pname = cargo.name;
  inherit (cargo) version;
  src = lib.sources.sourceByRegex ./. [
    "Cargo\\.(toml|lock)"
    "clippy\\.toml"
    "(src|tests|examples|docs)(/.*)?"
  ];
  cargoLock.lockFile = ./Cargo.lock;
  # The tests need databases, systemd and Python: ./checks/run has them.
  doCheck = false;
  # io-vip: its store.
  buildFeatures = [ "etcd" ];
  # etcd's protocol is compiled with protoc.
  nativeBuildInputs = [
    installShellFiles
    protobuf
  ];
  postInstall = ''
    for program in io-guardian io-coordinator io-fence io-vip; do
      $out/bin/$program man > $program.1
      installManPage $program.1
      for shell in bash fish zsh; do
        $out/bin/$program completions $shell > $program.$shell
        installShellCompletion --$shell --name $program.$shell $program.$shell
      done
    done
  '';
  meta = {
    inherit (cargo) description;
    license = lib.licenses.mit;
    mainProgram = "io-guardian";
    platforms = lib.platforms.linux;
  };
}
