//! The table of angles.

use qwentune::ops::rope;

/// Values that PyTorch 2 computes by the formula of `transformers` (float32), as (D, theta, position, pair, cos,
/// sin). An angle near 1000 is known to 6e-5 in f32, so the order of its roundings matters.
#[test]
fn rope_table_has_the_values_of_transformers() {
    for (dim, theta, position, pair, cos, sin) in [
        (128, 1e6, 1000, 0, 0.562_379_06, 0.826_879_56),
        (128, 1e6, 1000, 1, -0.023_706_254, 0.999_718_96),
        (128, 1e6, 1000, 5, 0.863_400_64, 0.504_518_93),
        (128, 1e6, 1000, 17, 0.939_295_17, 0.343_110_23),
        (128, 1e6, 1000, 63, 0.999_999_2, 0.001_240_937_4),
        (64, 1e4, 511, 0, -0.471_678_88, 0.881_770_37),
        (64, 1e4, 511, 5, -0.223_959_73, 0.974_598_4),
        (64, 1e4, 511, 17, -0.771_012_5, -0.636_820_1),
    ] {
        let table = rope::table(dim, theta, position + 1);
        let got = &table[position * dim + 2 * pair..][..2];
        let near = |got: f32, want: f64| (f64::from(got) - want).abs() <= 1e-7;
        assert!(near(got[0], cos) && near(got[1], sin), "D {dim}, position {position}, pair {pair}: {got:?}");
    }
}
