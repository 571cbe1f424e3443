"""The built-in scorers, as strings, so that listing them imports none of them."""

from __future__ import annotations

BUILTIN: dict[str, str] = {
    "adherence": "rlvid.rewards.critics.adherence:AdherenceCritic",
    "physics": "rlvid.rewards.critics.physics:PhysicsCritic",
    "physics_laws": "rlvid.rewards.critics.physics_laws:PhysicsLawsCritic",
    "camera_motion": "rlvid.rewards.critics.camera_motion:CameraMotionCritic",
    "realism": "rlvid.rewards.critics.realism:RealismCritic",
    "attribute_judge": "rlvid.rewards.critics.attribute_judge:AttributeJudge",
    "vlm_judge": "rlvid.rewards.judges.scorers:VlmJudge",
    "vlm_pairwise": "rlvid.rewards.judges.scorers:VlmPairwise",
    "trained_reward": "rlvid.rewards.critics.trained_reward:TrainedReward",
    "video_text": "rlvid.rewards.specialists.video_text:VideoText",
    "text_in_video": "rlvid.rewards.specialists.text_in_video:TextInVideo",
    "text_topic": "rlvid.rewards.specialists.text_topic:TextTopic",
    "lpips_change": "rlvid.rewards.specialists.lpips_change:LpipsChange",
    "lpips_identity": "rlvid.rewards.specialists.lpips_change:LpipsIdentity",
    "ffmpeg_quality": "rlvid.rewards.specialists.ffmpeg_quality:FfmpegQuality",
    "vmaf": "rlvid.rewards.specialists.vmaf:VmafToReference",
    "face_and_pose": "rlvid.rewards.specialists.face_and_pose:FaceAndPose",
    "clip_score": "rlvid.rewards.specialists.clip_score:ClipScore",
    "hpsv3": "rlvid.rewards.specialists.hpsv3:HpsV3",
    "video_align": "rlvid.rewards.specialists.video_align:VideoAlign",
    "raft_flow": "rlvid.rewards.specialists.raft_flow:RaftFlow",
    "cotracker": "rlvid.rewards.specialists.cotracker:CoTracker",
    "object_presence": "rlvid.rewards.specialists.object_presence:ObjectPresence",
}
