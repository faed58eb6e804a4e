//! Parameter structs of the kernels, the same bytes on both sides. Pointers are device addresses (`u64`), sizes are in
//! elements. The tests compare every struct with the C++ one of its name, field by field.

/// A kernel's parameter struct: plain integers, floats and arrays of them, without padding.
///
/// # Safety
/// The implementing type is `repr(C)`, has no padding, and every bit pattern written to it is initialised. Only
/// `parameters!` implements it.
pub unsafe trait Parameters: Field + Copy + 'static {
    /// The struct's bytes.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding (the trait's contract), so all bytes are initialised; the lifetime is that of `self`.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

/// How a struct lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Name of the C++ struct.
    pub name: &'static str,
    /// Its size.
    pub bytes: usize,
    /// Name and byte offset of each field.
    pub fields: Vec<(&'static str, usize)>,
}

/// What a parameter struct may hold.
pub trait Field {
    /// Adds the structs that this type is made of.
    fn layouts(_all: &mut Vec<Layout>) {}
}

impl Field for u64 {}
impl Field for u32 {}
impl Field for i32 {}
impl Field for f32 {}

impl<T: Field, const N: usize> Field for [T; N] {
    fn layouts(all: &mut Vec<Layout>) {
        T::layouts(all);
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

        impl $crate::device::cuda::parameters::Field for $name {
            fn layouts(all: &mut Vec<$crate::device::cuda::parameters::Layout>) {
                all.push($crate::device::cuda::parameters::Layout {
                    name: stringify!($name),
                    bytes: size_of::<$name>(),
                    fields: vec![$((stringify!($field), std::mem::offset_of!($name, $field)),)*],
                });
                $(<$type as $crate::device::cuda::parameters::Field>::layouts(all);)*
            }
        }

        // SAFETY: repr(C); the assertion above rules out padding; fields are numbers, arrays and structs of such.
        unsafe impl $crate::device::cuda::parameters::Parameters for $name {}
    };
}

pub(crate) use parameters;
