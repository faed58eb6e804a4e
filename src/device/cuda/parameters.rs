//! Parameter structs of the kernels, the same bytes on both sides. Pointers are device addresses (`u64`), sizes are in
//! elements. The tests compare every struct with the C++ one of its name, field by field.

/// A kernel's parameter struct: plain integers, floats and arrays of them, without padding.
///
/// # Safety
/// The implementing type is `repr(C)`, has no padding, and every bit pattern written to it is initialised. Only
/// `parameters!` implements it.
pub unsafe trait Parameters: Copy + 'static {
    /// Name of the C++ struct.
    const NAME: &'static str;
    /// Name and byte offset of each field.
    const FIELDS: &'static [(&'static str, usize)];

    /// The struct's bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding (the trait's contract), so all bytes are initialised; the lifetime is that of `self`.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

/// Declares a parameter struct.
macro_rules! parameters {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        const _: () = assert!(0 $(+ size_of::<$type>())* == size_of::<$name>(), "padding inside a parameter struct");

        // SAFETY: repr(C); the assertion above rules out padding; fields are numbers, arrays and structs of such.
        unsafe impl $crate::device::cuda::parameters::Parameters for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*];
        }
    };
}

pub(crate) use parameters;
