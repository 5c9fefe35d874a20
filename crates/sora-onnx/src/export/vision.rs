//! How operators of computer vision are written.

use sora_ir::ops::{
    Aspect, Coordinates, GridSample, Interpolation, MaxPoolIndices, Outside, Resize, RoiAlign, Rounding,
};

use super::node::{NodeWriter, flag, float, int, integers, sizes, text};
use crate::tensor::signed;

/// The oldest opset that has what a resize is written as.
pub(super) fn resize_since(op: &Resize) -> i64 {
    let newest = op.coordinates == Coordinates::HalfPixelSymmetric;
    let newer = op.antialias || !op.axes.is_empty() || op.aspect != Aspect::Stretch;
    if newest {
        19
    } else if newer {
        18
    } else {
        13
    }
}

pub(super) fn resize(w: &mut NodeWriter, op: &Resize) {
    let mode = match op.interpolation {
        Interpolation::Nearest => "nearest",
        Interpolation::Linear => "linear",
        Interpolation::Cubic => "cubic",
    };
    let coordinates = match op.coordinates {
        Coordinates::HalfPixel => "half_pixel",
        Coordinates::HalfPixelSymmetric => "half_pixel_symmetric",
        Coordinates::PytorchHalfPixel => "pytorch_half_pixel",
        Coordinates::AlignCorners => "align_corners",
        Coordinates::Asymmetric => "asymmetric",
        Coordinates::CropAndResize => "tf_crop_and_resize",
    };
    let mut attributes = vec![text("mode", mode), text("coordinate_transformation_mode", coordinates)];
    if op.interpolation == Interpolation::Nearest {
        let rounding = match op.rounding {
            Rounding::PreferFloor => "round_prefer_floor",
            Rounding::PreferCeil => "round_prefer_ceil",
            Rounding::Floor => "floor",
            Rounding::Ceil => "ceil",
        };
        attributes.push(text("nearest_mode", rounding));
    }
    if op.interpolation == Interpolation::Cubic {
        attributes.push(float("cubic_coeff_a", op.coefficient.0));
    }
    if op.exclude_outside {
        attributes.push(flag("exclude_outside", true));
    }
    if op.coordinates == Coordinates::CropAndResize {
        attributes.push(float("extrapolation_value", op.extrapolation.0));
    }
    if op.antialias {
        attributes.push(flag("antialias", true));
    }
    if !op.axes.is_empty() {
        attributes.push(integers("axes", &op.axes));
    }
    match op.aspect {
        Aspect::Stretch => {}
        Aspect::NotLarger => attributes.push(text("keep_aspect_ratio_policy", "not_larger")),
        Aspect::NotSmaller => attributes.push(text("keep_aspect_ratio_policy", "not_smaller")),
    }
    w.write("Resize", attributes);
}

pub(super) fn grid_sample(w: &mut NodeWriter, op: &GridSample) {
    let mode = match op.interpolation {
        Interpolation::Nearest => "nearest",
        Interpolation::Linear => "linear",
        Interpolation::Cubic => "cubic",
    };
    let outside = match op.outside {
        Outside::Zeros => "zeros",
        Outside::Border => "border",
        Outside::Reflection => "reflection",
    };
    let corners = flag("align_corners", op.align_corners);
    w.write("GridSample", vec![text("mode", mode), text("padding_mode", outside), corners]);
}

pub(super) fn roi_align(w: &mut NodeWriter, op: &RoiAlign) {
    let coordinates = if op.half_pixel { "half_pixel" } else { "output_half_pixel" };
    let attributes = vec![
        text("mode", if op.max { "max" } else { "avg" }),
        text("coordinate_transformation_mode", coordinates),
        int("output_height", signed(op.height)),
        int("output_width", signed(op.width)),
        int("sampling_ratio", signed(op.samples)),
        float("spatial_scale", op.scale.0),
    ];
    w.write("RoiAlign", attributes);
}

/// The second output of a pool whose first output nobody reads.
pub(super) fn max_pool_indices(w: &mut NodeWriter, op: &MaxPoolIndices) {
    let attributes = vec![
        sizes("kernel_shape", &op.kernel),
        sizes("strides", &op.strides),
        sizes("pads", &op.pads),
        sizes("dilations", &op.dilations),
        flag("ceil_mode", op.ceil_mode),
        flag("storage_order", op.column_major),
    ];
    let (inputs, name) = (w.inputs(), w.node.name.clone());
    let unread = w.writer.fresh(&format!("{name}/maxima"));
    let outputs = [vec![unread], w.outputs()].concat();
    w.writer.push(&name, "MaxPool", inputs, outputs, attributes);
}
