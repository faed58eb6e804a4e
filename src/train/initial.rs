//! Where a run's adapter begins: fresh from the seed or with an adapter's weights, on a base with adapters
//! folded into it.

use crate::checkpoint::state::{State, digest_of};
use crate::config::Settings;
use crate::error::Result;
use crate::identity::InitialAdapter;
use crate::model::{Adapter, AdapterSpec, Layout, Spec, Weights, fold};

/// Adapter specification, layout and flat initial values. `--fold-adapters` are folded into `weights`; what
/// `--init-adapter` decides is filled into the settings; the digests of all go into the identity. A run that continues
/// does not need the adapter it began with any more, but still those that are part of its base.
///
/// # Errors
/// An adapter that cannot be read or does not fit the model; settings that name no layer.
pub fn initial_adapter(
    s: &mut Settings,
    spec: &Spec,
    weights: &mut Weights,
    resumed: Option<&State>,
    identity: &mut InitialAdapter,
) -> Result<(AdapterSpec, Layout, Vec<f32>)> {
    for folder in &s.fold_adapters {
        let adapter = Adapter::read(folder, spec)?;
        fold::fold(weights, &adapter)?;
        identity.folded.push(adapter.digest());
    }
    let Some(folder) = s.init_adapter.clone() else {
        let (adapter, layout, values) = fresh(s, spec)?;
        identity.initial = digest(&values);
        return Ok((adapter, layout, values));
    };
    let read = match (Adapter::read(&folder, spec), resumed) {
        (Err(_), Some(state)) => {
            // The settings and the checkpoint have all it decided.
            identity.initial.clone_from(&state.identity.adapter.initial);
            return fresh(s, spec);
        }
        (read, _) => read?,
    };
    identity.initial = digest(&read.values);
    read.spec.into_settings(s);
    Ok((AdapterSpec::from_settings(s), read.layout, read.values))
}

fn fresh(s: &Settings, spec: &Spec) -> Result<(AdapterSpec, Layout, Vec<f32>)> {
    let adapter = AdapterSpec::from_settings(s);
    let layout = Layout::new(spec, &adapter)?;
    let values = layout.initial(s.seed);
    Ok((adapter, layout, values))
}

fn digest(values: &[f32]) -> String {
    blake3::Hash::from_bytes(digest_of(values)).to_hex().to_string()
}
