//! Where Noise takes its multiplications on Curve25519 from (RFC 7748): they are most of what a handshake costs.
//!
//! Graviola's, which are s2n-bignum's proven assembler, take 0.5 of the time of curve25519-dalek's. They need instructions that
//! not every processor has; with others, and on other machines, dalek does it. Both give the same bytes.

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};

/// What [`snow`] is given to do its sums with: its own parts, but for the curve.
pub(super) struct Provider;

impl CryptoResolver for Provider {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if *choice == DHChoice::Curve25519 && assembler::runs_here() {
            return Some(Box::<assembler::X25519>::default());
        }
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod assembler {
    use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
    use snow::Error;
    use snow::types::{Dh, Random};
    use zeroize::Zeroizing;

    /// Whether this processor has what graviola needs; it panics on one that has not (its README, "Limitations").
    pub(super) fn runs_here() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            has!("aes")
                && has!("pclmulqdq")
                && has!("ssse3")
                && has!("avx")
                && has!("avx2")
                && has!("bmi1")
                && has!("bmi2")
                && has!("adx")
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            has!("neon") && has!("aes") && has!("pmull") && has!("sha2")
        }
    }

    /// One side's key pair.
    #[derive(Default)]
    pub(super) struct X25519 {
        private: Zeroizing<[u8; 32]>,
        public: [u8; 32],
    }

    impl Dh for X25519 {
        fn name(&self) -> &'static str {
            "25519"
        }

        fn pub_len(&self) -> usize {
            self.public.len()
        }

        fn priv_len(&self) -> usize {
            self.private.len()
        }

        fn set(&mut self, privkey: &[u8]) {
            self.private.copy_from_slice(privkey);
            self.public = StaticPrivateKey::from_array(&self.private)
                .public_key()
                .as_bytes();
        }

        fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
            let mut private = Zeroizing::new([0; 32]);
            rng.try_fill_bytes(&mut *private)?;
            self.set(&*private);
            Ok(())
        }

        fn pubkey(&self) -> &[u8] {
            &self.public
        }

        fn privkey(&self) -> &[u8] {
            &*self.private
        }

        fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
            let theirs: &[u8; 32] = pubkey.first_chunk().ok_or(Error::Dh)?;
            let ours = StaticPrivateKey::from_array(&self.private);
            // Refuses a point of low order, which would make what is shared known to all: stricter than Noise asks for
            // (revision 34, section 12.1), and nobody of us sends one.
            let shared = ours
                .diffie_hellman(&PublicKey::from_array(theirs))
                .map_err(|_| Error::Dh)?;
            out.get_mut(..32).ok_or(Error::Dh)?.copy_from_slice(&shared.0);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(digits: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
    }

    fn both() -> [Box<dyn Dh>; 2] {
        [&Provider as &dyn CryptoResolver, &DefaultResolver]
            .map(|resolver| resolver.resolve_dh(&DHChoice::Curve25519).unwrap())
    }

    /// RFC 7748, section 5.2: the first of its two examples.
    #[test]
    fn the_product_is_that_of_the_rfc() {
        let scalar = bytes("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4");
        let point = bytes("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c");
        let product = bytes("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552");
        for mut side in both() {
            side.set(&scalar);
            let mut shared = [0; 32];
            side.dh(&point, &mut shared).unwrap();
            assert_eq!(shared[..], product[..]);
        }
    }

    #[test]
    fn whoever_does_the_sums_they_come_to_the_same() {
        let mut rng = DefaultResolver.resolve_rng().unwrap();
        for _ in 0..100 {
            let [mut ours, mut theirs] = both();
            ours.generate(&mut *rng).unwrap();
            theirs.set(ours.privkey());
            assert_eq!(ours.pubkey(), theirs.pubkey());
            let [mut other, _] = both();
            other.generate(&mut *rng).unwrap();
            let [mut one, mut two] = [[0; 32]; 2];
            ours.dh(other.pubkey(), &mut one).unwrap();
            theirs.dh(other.pubkey(), &mut two).unwrap();
            assert_eq!(one, two);
        }
    }

    #[test]
    fn a_point_that_makes_the_secret_known_to_all_is_refused() {
        let [mut ours, _] = both();
        ours.set(&[7; 32]);
        let mut shared = [0; 32];
        let refused = ours.dh(&[0; 32], &mut shared);
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if assembler::runs_here() {
            assert!(refused.is_err());
            return;
        }
        // Dalek follows Noise, which leaves it to the key that nobody else has.
        assert_eq!((refused.is_ok(), shared), (true, [0; 32]));
    }
}
