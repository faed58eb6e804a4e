//! The compiled kernels inside this program.

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Digest of all images, hexadecimal: the fingerprint of the kernels in checkpoints. `None` without kernels.
#[must_use]
pub fn fingerprint() -> Option<String> {
    if IMAGES.is_empty() {
        return None;
    }
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in IMAGES {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    Some(hasher.finalize().to_hex().to_string())
}
